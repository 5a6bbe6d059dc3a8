//! One base and many adapters behind an OpenAI-compatible server.

pub mod worker;
