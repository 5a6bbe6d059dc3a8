//! TensorBoard event files, written by hand: TFRecord frames around a few protobuf fields.
//!
//! Formats: tensorflow/core/lib/io/record_writer.h (frames), tensorflow/core/util/event.proto,
//! tensorflow/core/framework/summary.proto (messages). Tags and steps are those of transformers'
//! `TensorBoardCallback`: `train/loss`, `train/learning_rate`, `eval/loss`, ...

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::progress::{Control, Event, LogRow, Observer, RunInfo};
use crate::error::{Error, Result};

/// Stands in each of our files as the writer's name, so that we know them again.
const WRITER: &str = "qlora_engine.tensorboard";

/// Writes one event file a run, below `runs/` of the output folder or into a folder of its own.
pub struct TensorBoard {
    output_dir: PathBuf,
    logging_dir: Option<PathBuf>,
    count_tokens: bool,
    open: Option<(PathBuf, File)>,
    /// The run's settings, shown under the text tab.
    args: String,
}

impl TensorBoard {
    /// Events for `output_dir`/runs/`<date>_<host>`, or for `logging_dir` where given. `args` (JSON) is recorded as
    /// the text `args`. Nothing is written before the run starts.
    pub fn new(output_dir: &Path, logging_dir: Option<&Path>, args: String) -> TensorBoard {
        let (output_dir, logging_dir) = (output_dir.to_path_buf(), logging_dir.map(Path::to_path_buf));
        TensorBoard { output_dir, logging_dir, count_tokens: false, open: None, args }
    }

    fn start(&mut self, info: &RunInfo<'_>) -> Result<()> {
        let now = since_epoch();
        let runs = self.output_dir.join("runs");
        // A resumed run goes on in the folder of the run before, and tells TensorBoard from where on.
        let before = if info.start_step > 0 { newest_run(&runs) } else { None };
        let fresh = || runs.join(format!("{}_{}", date(now.as_secs()), host()));
        let dir = self.logging_dir.clone().or(before).unwrap_or_else(fresh);
        fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, "cannot create", &e))?;
        let (path, file) = create_new(&dir, now.as_secs())?;
        self.count_tokens = info.count_tokens;
        self.open = Some((path, file));
        let time = now.as_secs_f64();
        self.write(&frame(&version_event(time)))?;
        if info.start_step > 0 {
            return self.write(&frame(&restart_event(time, info.start_step + 1)));
        }
        let args = std::mem::take(&mut self.args);
        self.write(&frame(&text_event(time, 0, "args", &args)))
    }

    fn row(&mut self, row: &LogRow) -> Result<()> {
        let time = since_epoch().as_secs_f64();
        let epoch = ("epoch".to_string(), row.epoch);
        let tokens = ("num_input_tokens_seen".to_string(), row.tokens_seen as f64);
        let extra = [Some(&epoch), self.count_tokens.then_some(&tokens)];
        let frames: Vec<u8> = row
            .values
            .iter()
            .chain(extra.into_iter().flatten())
            .flat_map(|(name, x)| frame(&scalar_event(time, row.step, &tag(name), *x as f32)))
            .collect();
        self.write(&frames)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some((path, file)) = &mut self.open else { return Ok(()) };
        file.write_all(bytes).map_err(|e| Error::io(path, "cannot write", &e))
    }
}

impl Observer for TensorBoard {
    fn observe(&mut self, event: &Event<'_>) -> Result<Control> {
        match event {
            Event::Start(info) => self.start(info)?,
            Event::Log(row) => self.row(row)?,
            Event::End { .. } => self.open = None,
            _ => {}
        }
        Ok(Control::Continue)
    }
}

/// Whether `path` is an event file that this program wrote.
pub fn is_ours(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(256).read_to_end(&mut head));
    read.is_ok() && head.windows(WRITER.len()).any(|w| w == WRITER.as_bytes())
}

/// `eval_loss` -> `eval/loss`, `test_loss` -> `test/loss`, anything else -> `train/...`.
fn tag(name: &str) -> String {
    for split in ["eval", "test"] {
        if let Some(rest) = name.strip_prefix(split).and_then(|rest| rest.strip_prefix('_')) {
            return format!("{split}/{rest}");
        }
    }
    format!("train/{name}")
}

/// A TFRecord: length (u64), its checksum, the bytes, their checksum; all little-endian.
fn frame(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(message.len() + 16);
    out.extend_from_slice(&length);
    out.extend_from_slice(&masked_crc(&length).to_le_bytes());
    out.extend_from_slice(message);
    out.extend_from_slice(&masked_crc(message).to_le_bytes());
    out
}

/// CRC-32C, rotated and shifted as TFRecord wants it, so that checksums of data with checksums in it stay sound.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Event { wall_time = 1, file_version = 3, source_metadata { writer = 1 } = 10 }
fn version_event(time: f64) -> Vec<u8> {
    let mut e = Proto::default();
    e.double(1, time);
    e.bytes(3, b"brain.Event:2");
    e.message(10, |m| m.bytes(1, WRITER.as_bytes()));
    e.0
}

/// Event { wall_time = 1, step = 2, session_log { status = 1: START (1) } = 7 }: TensorBoard then drops what
/// earlier files hold from `step` on.
fn restart_event(time: f64, step: u64) -> Vec<u8> {
    let mut e = Proto::default();
    e.double(1, time);
    e.varint(2, step);
    e.message(7, |log| log.varint(1, 1));
    e.0
}

/// Event { wall_time = 1, step = 2, summary { value { tag = 1, simple_value = 2 } = 1 } = 5 }
fn scalar_event(time: f64, step: u64, tag: &str, value: f32) -> Vec<u8> {
    let mut e = Proto::default();
    e.double(1, time);
    e.varint(2, step);
    e.message(5, |summary| {
        summary.message(1, |v| {
            v.bytes(1, tag.as_bytes());
            v.float(2, value);
        });
    });
    e.0
}

/// As [`scalar_event`], with value { tag, tensor { dtype = 1: string (7), tensor_shape { dim { size = 1 } = 2 } = 2,
/// string_val = 8 } = 8, metadata { plugin_data { plugin_name = 1 } = 1 } = 9 }
fn text_event(time: f64, step: u64, name: &str, text: &str) -> Vec<u8> {
    let mut e = Proto::default();
    e.double(1, time);
    e.varint(2, step);
    e.message(5, |summary| {
        summary.message(1, |v| {
            v.bytes(1, format!("{name}/text_summary").as_bytes());
            v.message(8, |tensor| {
                tensor.varint(1, 7);
                tensor.message(2, |shape| shape.message(2, |dim| dim.varint(1, 1)));
                tensor.bytes(8, text.as_bytes());
            });
            v.message(9, |metadata| metadata.message(1, |plugin| plugin.bytes(1, b"text")));
        });
    });
    e.0
}

/// The fields of one protobuf message, encoded as they are added.
#[derive(Default)]
struct Proto(Vec<u8>);

impl Proto {
    fn raw_varint(&mut self, mut x: u64) {
        while x >= 0x80 {
            self.0.push(x as u8 | 0x80);
            x >>= 7;
        }
        self.0.push(x as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.raw_varint(field << 3 | wire_type);
    }

    fn varint(&mut self, field: u64, x: u64) {
        self.key(field, 0);
        self.raw_varint(x);
    }

    fn double(&mut self, field: u64, x: f64) {
        self.key(field, 1);
        self.0.extend_from_slice(&x.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, x: &[u8]) {
        self.key(field, 2);
        self.raw_varint(x.len() as u64);
        self.0.extend_from_slice(x);
    }

    fn float(&mut self, field: u64, x: f32) {
        self.key(field, 5);
        self.0.extend_from_slice(&x.to_le_bytes());
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Proto)) {
        let mut inner = Proto::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }
}

/// `events.out.tfevents.<seconds>.<host>.<process>.<n>`, with the first n that is free.
fn create_new(dir: &Path, seconds: u64) -> Result<(PathBuf, File)> {
    let mut n = 0;
    loop {
        let name = format!("events.out.tfevents.{seconds:010}.{}.{}.{n}", host(), std::process::id());
        let path = dir.join(name);
        match File::create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => n += 1,
            Err(e) => return Err(Error::io(&path, "cannot create", &e)),
        }
    }
}

/// The folder below `runs` with the newest of our event files.
fn newest_run(runs: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(runs).ok()?.flatten().filter_map(|run| fs::read_dir(run.path()).ok()).flatten().flatten();
    let ours = files.map(|file| file.path()).filter(|path| is_ours(path));
    // The name starts with the time, in ten digits.
    let newest = ours.max_by_key(|path| path.file_name().map(|name| name.to_os_string()))?;
    newest.parent().map(Path::to_path_buf)
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The machine's name, fit for a file name.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok()).or_else(|| std::env::var("COMPUTERNAME").ok());
    let name = name.unwrap_or_default();
    let plain: String = name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).collect();
    if plain.is_empty() { "localhost".into() } else { plain }
}

/// Seconds since 1970 as `Nov22_07-34-54`, in UTC.
fn date(seconds: u64) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    // Days to a date of the Gregorian calendar: H. Hinnant, "chrono-compatible low-level date algorithms",
    // civil_from_days, for days from 1970 on. Years begin in March there.
    let day = seconds / 86_400 + 719_468;
    let of_era = day % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = MONTHS[(from_march as usize + 2) % 12];
    let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{month}{day:02}_{h:02}-{m:02}-{s:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages of an event file; panics on a frame that does not check.
    fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(masked_crc(&bytes[..8]).to_le_bytes(), bytes[8..12]);
            let message = &bytes[12..12 + length];
            assert_eq!(masked_crc(message).to_le_bytes(), bytes[12 + length..16 + length]);
            out.push(message.to_vec());
            bytes = &bytes[16 + length..];
        }
        out
    }

    fn rows() -> [LogRow; 2] {
        let values = |v: &[(&str, f64)]| v.iter().map(|&(n, x)| (n.to_string(), x)).collect();
        [
            LogRow {
                step: 5,
                epoch: 0.5,
                tokens_seen: 10,
                values: values(&[("loss", 2.5), ("grad_norm", 1.25), ("learning_rate", 5e-5)]),
            },
            LogRow { step: 300, epoch: 1.0, tokens_seen: 20, values: values(&[("eval_loss", 2.25)]) },
        ]
    }

    fn run(dir: &Path, start_step: u64) {
        let info = RunInfo { total_steps: 9, start_step, start_tokens: 0, history: &[], count_tokens: false };
        let mut board = TensorBoard::new(dir, None, "{\"learning_rate\": 5e-05}".into());
        board.observe(&Event::Start(&info)).unwrap();
        for row in rows() {
            board.observe(&Event::Log(&row)).unwrap();
        }
        board.observe(&Event::End { step: 9 }).unwrap();
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let runs = fs::read_dir(dir.join("runs")).unwrap().flat_map(|r| fs::read_dir(r.unwrap().path()).unwrap());
        let mut files: Vec<_> = runs.map(|f| f.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn checksums_are_crc32c() {
        // The check value of CRC-32C (RFC 3720, B.4) and TensorFlow's own: crc32c_test.cc masks it by this formula.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        let crc = 0xe306_9283_u32;
        assert_eq!(masked_crc(b"123456789"), crc.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn file_holds_version_text_and_scalars() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), 0);
        let files = files(dir.path());
        assert_eq!(files.len(), 1);
        let name = files[0].file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("events.out.tfevents.") && name.ends_with(".0"), "{name}");
        assert!(is_ours(&files[0]));
        let events = frames(&fs::read(&files[0]).unwrap());
        // Version, args, 4 scalars of the first row, 2 of the second; times (bytes 1..9) left out.
        assert_eq!(events.len(), 8);
        let timeless = |i: usize| {
            assert_eq!(events[i][0], 0x09);
            &events[i][9..]
        };
        assert!(timeless(0).starts_with(b"\x1a\x0dbrain.Event:2"));
        assert_eq!(timeless(2), b"\x10\x05\x2a\x13\x0a\x11\x0a\x0atrain/loss\x15\x00\x00\x20\x40");
        // Step 300 is the varint ac 02.
        assert_eq!(timeless(6), b"\x10\xac\x02\x2a\x12\x0a\x10\x0a\x09eval/loss\x15\x00\x00\x10\x40");
        let tags: Vec<_> = (2..8)
            .map(|i| {
                let text = String::from_utf8_lossy(&events[i]).into_owned();
                let at = text.find("train/").or(text.find("eval/")).unwrap();
                text[at..].chars().take_while(|c| c.is_ascii_lowercase() || "/_".contains(*c)).collect::<String>()
            })
            .collect();
        assert_eq!(
            tags,
            ["train/loss", "train/grad_norm", "train/learning_rate", "train/epoch", "eval/loss", "train/epoch"]
        );
    }

    #[test]
    fn a_resumed_run_goes_on_in_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), 0);
        run(dir.path(), 4);
        let files = files(dir.path());
        assert_eq!(files.len(), 2);
        assert_eq!(files[0].parent(), files[1].parent());
        let events = frames(&fs::read(&files[1]).unwrap());
        assert_eq!(&events[1][9..], b"\x10\x05\x3a\x02\x08\x01", "a START at step 5");
    }

    #[test]
    fn dates_are_gregorian() {
        for (seconds, want) in [
            (0, "Jan01_00-00-00"),
            (951_782_400, "Feb29_00-00-00"),
            (1_709_251_199, "Feb29_23-59-59"),
            (1_763_796_894, "Nov22_07-34-54"),
            (1_767_225_599, "Dec31_23-59-59"),
        ] {
            assert_eq!(date(seconds), want);
        }
    }
}
