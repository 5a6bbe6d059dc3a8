//! The format of a data set given as a path, guessed from the columns of its first row.

use serde_json::Value;

use super::Row;
use crate::data::registry::{Columns, Format, Formatting, Tags};
use crate::error::Result;

/// Prompt and response columns by which question-and-answer rows are known, the likeliest first.
const PAIRS: [(&str, &str); 6] = [
    ("instruction", "output"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("prompt", "response"),
    ("query", "response"),
    ("input", "output"),
];

/// What the columns of `row` mean: alpaca, `conversations` (sharegpt), `messages` (openai), a pair such as
/// `prompt`/`completion` or `question`/`answer`, or plain `text`.
///
/// # Errors
/// [`crate::Error::Row`] naming the columns, where they are none of these, or are for preference or picture data.
pub fn guess(row: &Row) -> Result<Format> {
    let has = |column: &str| row.columns.contains_key(column);
    let some = |column: &str| has(column).then(|| column.to_string());
    if has("chosen") && has("rejected") {
        return Err(row.error("`chosen` and `rejected` are for stage dpo, which is not built"));
    }
    for media in ["images", "videos", "audios"] {
        if row.columns.get(media).is_some_and(|value| !value.is_null()) {
            return Err(row.error(format!("has `{media}`: only text is trained on")));
        }
    }
    let also = Columns { history: some("history"), system: some("system"), tools: some("tools"), ..Columns::default() };
    for column in ["conversations", "messages"] {
        let Some(Value::Array(messages)) = row.columns.get(column) else { continue };
        let Some(Value::Object(first)) = messages.first() else {
            return Err(row.error(format!("`{column}` holds no message to tell the format from")));
        };
        let of_sharegpt = first.contains_key("from") && first.contains_key("value");
        if !of_sharegpt && !(first.contains_key("role") && first.contains_key("content")) {
            return Err(row.error(format!("`{column}` must hold messages of `from` and `value`, or of `role` and `content`")));
        }
        let (formatting, tags) = match of_sharegpt {
            true => (Formatting::Sharegpt, Tags::default()),
            false => (Formatting::Openai { thinking_note: false }, openai_tags()),
        };
        let columns = Columns { messages: some(column), ..also };
        return Ok(Format { formatting, columns, tags, expected: vec![column.into()] });
    }
    let alpaca = |prompt: &str, response: Option<&str>, also: Columns| {
        // A column `input` beside another prompt adds to it.
        let query = some("input").filter(|query| query != prompt);
        let columns = Columns { prompt: some(prompt), query, response: response.map(str::to_string), ..also };
        let expected = std::iter::once(prompt).chain(response).map(str::to_string).collect();
        Format { formatting: Formatting::Alpaca, columns, tags: Tags::default(), expected }
    };
    if let Some((prompt, response)) = PAIRS.into_iter().find(|(prompt, response)| has(prompt) && has(response)) {
        return Ok(alpaca(prompt, Some(response), also));
    }
    if has("text") {
        return Ok(alpaca("text", None, Columns::default()));
    }
    let names: Vec<_> = row.columns.keys().map(|column| format!("`{column}`")).collect();
    Err(row.error(format!(
        "columns {} tell no format (known: instruction/output, prompt/completion, question/answer, conversations, \
         messages, text); describe them in dataset_info.json",
        names.join(", ")
    )))
}

fn openai_tags() -> Tags {
    let some = |tag: &str| Some(tag.to_string());
    Tags {
        role: "role".into(),
        content: "content".into(),
        user: some("user"),
        assistant: some("assistant"),
        observation: some("tool"),
        function: some("function"),
        system: some("system"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Stage;
    use crate::data::convert::convert;
    use serde_json::json;

    fn row(columns: Value) -> Row {
        let Value::Object(columns) = columns else { panic!("not an object") };
        Row { file: std::path::Path::new("f").into(), number: 1, columns }
    }

    #[test]
    fn the_first_row_tells() {
        for columns in [
            json!({"instruction": "q", "input": "", "output": "a"}),
            json!({"prompt": "q", "completion": "a", "id": 3}),
            json!({"question": "q", "answer": "a"}),
            json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
            json!({"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
        ] {
            let row = row(columns);
            let record = convert(&row, &guess(&row).unwrap(), Stage::Sft).unwrap().unwrap();
            let contents: Vec<_> = record.messages.iter().map(|m| m.content.as_str()).collect();
            assert_eq!((contents, record.system.as_str()), (vec!["q", "a"], ""), "{row:?}");
        }
        let text = row(json!({"text": "t", "url": "u"}));
        assert_eq!(guess(&text).unwrap().columns.response, None);
    }

    #[test]
    fn what_tells_nothing_is_refused() {
        for (columns, said) in [
            (json!({"foo": 1}), "`foo`"),
            (json!({}), "tell no format"),
            (json!({"prompt": "p", "chosen": "c", "rejected": "r"}), "stage dpo"),
            (json!({"instruction": "p", "output": "c", "images": ["i"]}), "only text"),
            (json!({"messages": []}), "no message"),
            (json!({"messages": [{"speaker": "x"}]}), "`role`"),
        ] {
            assert!(guess(&row(columns)).unwrap_err().to_string().contains(said), "{said}");
        }
    }
}
