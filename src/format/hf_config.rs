pub struct HfConfig;
