//! One base and many adapters behind an OpenAI-compatible server.
//!
//! [`open`] loads what is served, [`Server::bind`] takes the address, [`Server::run`] answers until it is told to stop. The
//! model lives on a thread of its own ([`worker`]); everything here only turns HTTP into its requests and its tokens into
//! HTTP.
//!
//! | looked for | place |
//! |---|---|
//! | connections, the orderly stop | `net` |
//! | routes, what handlers share, the handlers | `app`, `handlers` |
//! | a request's fields and their bounds, answers whole or streamed | `openai/` |
//! | names of adapters, hot load and unload, the jail | `adapters` |
//! | template and thinking mode of an adapter | `voice` |
//! | how much of the memory keys and values get | `budget` |
//! | a line of log and the metrics of each request | `log`, `metrics` |

mod adapters;
mod answer;
mod app;
mod auth;
mod budget;
#[cfg(test)]
mod double;
mod engine;
mod handlers;
mod ids;
mod log;
mod metrics;
mod net;
mod openai;
mod options;
mod start;
#[cfg(test)]
mod tests;
mod voice;
pub mod worker;

pub use app::App;
pub use auth::Keys;
pub use log::TARGET as LOG_TARGET;
pub use net::Server;
pub use options::Options;
pub(crate) use start::last_part;
pub use start::open;
