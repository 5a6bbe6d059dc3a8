pub struct AdapterConfig; pub struct AdapterFile; pub struct Sidecar;
