//! Loss curves as PNG: the raw values faint, a smoothed curve over them, as LLaMA-Factory's `plot_loss` draws them.

use std::path::Path;
use std::sync::Once;

use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::state::TrainerState;
use crate::error::{Error, Result};
use crate::format::atomic::write_atomic_with;

/// DejaVu Sans, ASCII only: the picture looks the same on every machine, fonts installed or not.
static FONT: &[u8] = include_bytes!("../../assets/fonts/DejaVuSans-ascii.ttf");

const SIZE: (u32, u32) = (1200, 800);
/// matplotlib's first colour.
const BLUE: RGBColor = RGBColor(31, 119, 180);
const GREY: RGBColor = RGBColor(90, 90, 90);

/// Draws `output_dir`/training_<key>.png for each of `keys` (`loss`, `eval_loss`) that the history holds; returns
/// the file names. A key without values is warned of and left out.
///
/// # Errors
/// [`Error::File`] if a picture cannot be drawn or written.
pub fn plot_losses(output_dir: &Path, state: &TrainerState, keys: &[&str]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for &key in keys {
        let value =
            |row: &serde_json::Map<_, serde_json::Value>| Some((row.get("step")?.as_f64()?, row.get(key)?.as_f64()?));
        let points: Vec<(f64, f64)> = state.log_history.iter().filter_map(value).collect();
        if points.is_empty() {
            log::warn!("no metric {key} to plot");
            continue;
        }
        let name = format!("training_{}.png", key.replace('/', "_"));
        let title = format!("training {key} of {}", output_dir.display());
        draw(&output_dir.join(&name), &title, key, &points)?;
        names.push(name);
    }
    Ok(names)
}

/// An exponential moving average, weighted the more the more values there are: 1.8 (sigmoid(n / 20) - 1/2) of it
/// is the past. Source: LLaMA-Factory's `extras/ploting.py`.
pub fn smooth(values: &[f64]) -> Vec<f64> {
    let weight = 1.8 * (1.0 / (1.0 + (-0.05 * values.len() as f64).exp()) - 0.5);
    let mut last = values.first().copied().unwrap_or(0.0);
    values
        .iter()
        .map(|&value| {
            last = last * weight + (1.0 - weight) * value;
            last
        })
        .collect()
}

/// Draws one picture of `points` (step, value), which must not be empty.
fn draw(path: &Path, title: &str, label: &str, points: &[(f64, f64)]) -> Result<()> {
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| {
        for style in [FontStyle::Normal, FontStyle::Bold] {
            if register_font("sans-serif", style, FONT).is_err() {
                log::warn!("the built-in font does not load");
            }
        }
    });
    write_atomic_with(path, |temp| {
        let root = BitMapBackend::new(temp, SIZE).into_drawing_area();
        chart(&root, title, label, points)
            .and_then(|()| root.present().map_err(|e| e.to_string()))
            .map_err(std::io::Error::other)
    })
    .map_err(|e| match e {
        Error::File { path, why } => Error::file(path, why.replace('\n', " ")),
        e => e,
    })
}

type Canvas<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;

fn chart(root: &Canvas<'_>, title: &str, label: &str, points: &[(f64, f64)]) -> std::result::Result<(), String> {
    let smoothed = smooth(&points.iter().map(|p| p.1).collect::<Vec<_>>());
    let steps = bounds(points.iter().map(|p| p.0));
    let values = bounds(points.iter().map(|p| p.1));
    root.fill(&WHITE).map_err(text)?;
    let mut chart = ChartBuilder::on(root)
        .caption(shorten(title, 74), ("sans-serif", 28).into_font().color(&BLACK))
        .margin(24)
        .margin_right(40)
        .x_label_area_size(64)
        .y_label_area_size(92)
        .build_cartesian_2d(steps.0..steps.1, values.0..values.1)
        .map_err(text)?;
    let span = values.1 - values.0;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc(label)
        .axis_desc_style(("sans-serif", 24).into_font().color(&BLACK))
        .label_style(("sans-serif", 20).into_font().color(&GREY))
        .x_labels(10)
        .y_labels(9)
        .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { format!("{x}") })
        .y_label_formatter(&|y| tick(*y, span))
        .axis_style(GREY)
        .bold_line_style(RGBColor(225, 225, 225))
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(text)?;
    // On white, 0.4 of the colour and 0.6 of the paper; drawn opaque, for where translucent strokes of a wide line
    // overlap they would darken at every joint.
    let faint = RGBColor(165, 201, 225);
    let raw_style = ShapeStyle::from(&faint).stroke_width(2);
    let smooth_style = ShapeStyle::from(&BLUE).stroke_width(3);
    let raw = points.iter().copied();
    let line = points.iter().zip(&smoothed).map(|(&(x, _), &y)| (x, y));
    let key = move |(x, y): (i32, i32), style| PathElement::new(vec![(x, y), (x + 32, y)], style);
    chart
        .draw_series(LineSeries::new(raw.clone(), raw_style))
        .map_err(text)?
        .label("original")
        .legend(move |at| key(at, raw_style));
    chart
        .draw_series(LineSeries::new(line.clone(), smooth_style))
        .map_err(text)?
        .label("smoothed")
        .legend(move |at| key(at, smooth_style));
    if points.len() <= 30 {
        // Few values: show where they are; a single one is no line at all.
        chart.draw_series(raw.map(|p| Circle::new(p, 4, faint.filled()))).map_err(text)?;
        chart.draw_series(line.map(|p| Circle::new(p, 4, BLUE.filled()))).map_err(text)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .margin(16)
        .legend_area_size(44)
        .label_font(("sans-serif", 20).into_font().color(&BLACK))
        .background_style(WHITE)
        .border_style(RGBColor(200, 200, 200))
        .draw()
        .map_err(text)
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// The smallest and largest of `values` with a margin of 4 percent, or of 1/2 where they are all the same.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    let margin = if high > low { (high - low) * 0.04 } else { 0.5 };
    (low - margin, high + margin)
}

/// A label on the value axis, with as many decimals as the axis's `span` needs.
fn tick(y: f64, span: f64) -> String {
    // About nine ticks: each needs its own text.
    let places = (1.0 - (span / 9.0).log10().floor()).clamp(0.0, 12.0) as usize;
    let text = format!("{y:.places$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".into() } else { text.into() }
}

/// At most `most` characters, the middle left out; what the font lacks becomes "?".
fn shorten(text: &str, most: usize) -> String {
    let chars: Vec<char> = text.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).collect();
    if chars.len() <= most {
        return chars.into_iter().collect();
    }
    let half = (most - 3) / 2;
    let ends = [&chars[..half], &['.'; 3], &chars[chars.len() - half..]];
    ends.concat().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn state(losses: &[f64]) -> TrainerState {
        let row = |(i, x): (usize, &f64)| json!({"loss": x, "step": 10 * (i + 1)}).as_object().unwrap().clone();
        TrainerState {
            best_global_step: None,
            best_metric: None,
            best_model_checkpoint: None,
            epoch: 1.0,
            eval_steps: 1,
            global_step: 10 * losses.len() as u64,
            log_history: losses.iter().enumerate().map(row).collect(),
            logging_steps: 10,
            max_steps: 10,
            num_input_tokens_seen: 0,
            num_train_epochs: 1,
            save_steps: 1,
            total_flos: 0.0,
            train_batch_size: 1,
            losses: Default::default(),
            early_stopping: None,
        }
    }

    /// Width, height and the pixels' bytes of a PNG's header and size: a real picture, not an empty one.
    fn check_png(path: &Path) {
        let bytes = fs::read(path).unwrap();
        assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
        assert_eq!(u32::from_be_bytes(bytes[16..20].try_into().unwrap()), SIZE.0);
        assert_eq!(u32::from_be_bytes(bytes[20..24].try_into().unwrap()), SIZE.1);
        assert!(bytes.len() > 8_000, "{} bytes", bytes.len());
    }

    /// The values were computed by LLaMA-Factory 0.9.5's `smooth`.
    #[test]
    fn smoothing_is_llama_factory_s() {
        assert_eq!(smooth(&[]), [0.0; 0]);
        let want =
            [3.0, 2.5669982651304935, 2.725478402495745, 1.2312081189746993, 0.5979793508412722, 0.2966280256152009];
        let got = smooth(&[3.0, 2.5, 2.75, 1.0, 0.5, 0.25]);
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            // The same operations; only `exp` may differ in its last place.
            assert!((g - w).abs() <= 4e-15, "{got:?}");
        }
    }

    #[test]
    fn pictures_are_written_for_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let losses: Vec<f64> = (0..60).map(|i| 3.0 * (-f64::from(i) / 20.0).exp() + 0.2 * f64::from(i % 3)).collect();
        assert_eq!(plot_losses(dir.path(), &state(&losses), &["loss", "eval_loss"]).unwrap(), ["training_loss.png"]);
        check_png(&dir.path().join("training_loss.png"));
        // Nothing else is left in the folder.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        for few in [&[2.0][..], &[1.0, 1.0], &[1e-12, 2e12], &[-1e300, 1e300]] {
            plot_losses(dir.path(), &state(few), &["loss"]).unwrap();
            check_png(&dir.path().join("training_loss.png"));
        }
        let gone = dir.path().join("gone");
        let e = plot_losses(&gone, &state(&losses), &["loss"]).unwrap_err().to_string();
        assert!(e.contains("training_loss.png") && !e.contains('\n'), "{e}");
    }

    #[test]
    fn labels() {
        assert_eq!([tick(0.5, 3.0), tick(2.0, 3.0), tick(-0.0001, 3.0)], ["0.5", "2", "0"]);
        assert_eq!(tick(0.00012, 0.001), "0.00012");
        assert_eq!(tick(1_500_000.0, 9e6), "1500000");
        assert_eq!(shorten("saves/\u{6a21}", 74), "saves/?");
        assert_eq!(shorten("abcdefghijklmnop", 9), "abc...nop");
    }
}
