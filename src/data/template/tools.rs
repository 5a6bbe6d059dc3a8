//! How tools are described in the system prompt and how calls are written in an answer: one variant per tool format.

use std::collections::HashSet;

use super::pyjson::Json;

/// Longest `required` that is looked into if it is a string.
const LONGEST_REQUIRED: usize = 4096;

/// A tool format by LLaMA-Factory's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    Default,
    Llama3,
    Mistral,
    Qwen,
}

/// A call: the function's name, and its arguments.
struct Call {
    name: Json,
    arguments: Json,
}

impl ToolFormat {
    /// Every name that [`ToolFormat::by_name`] takes.
    pub const NAMES: [&str; 4] = ["default", "llama3", "mistral", "qwen"];

    /// The format called `name`.
    pub fn by_name(name: &str) -> Option<ToolFormat> {
        Some(match name {
            "default" => ToolFormat::Default,
            "llama3" => ToolFormat::Llama3,
            "mistral" => ToolFormat::Mistral,
            "qwen" => ToolFormat::Qwen,
            _ => return None,
        })
    }

    /// The text that follows the system prompt for `tools`, a JSON array of tools. `today` is written into Llama 3's.
    ///
    /// # Errors
    /// What is wrong with `tools`, as a phrase.
    pub(super) fn describe(self, tools: &str, today: &str) -> Result<String, String> {
        let tools = match Json::parse(tools).map_err(|e| format!("`tools` is not JSON: {e}"))? {
            Json::List(items) => items,
            Json::Dict(items) if items.is_empty() => Vec::new(),
            Json::Str(s) if s.is_empty() => Vec::new(),
            _ => return Err("`tools` must be a JSON array of tools".into()),
        };
        if tools.is_empty() {
            return Ok(String::new());
        }
        if !tools.iter().all(|t| matches!(t, Json::Dict(_))) {
            return Err("`tools` must be a JSON array of objects".into());
        }
        let is_wrapped = |t: &Json| t.get("type") == Some(&Json::Str("function".into()));
        let wrap = |t: &Json| {
            if is_wrapped(t) {
                t.clone()
            } else {
                Json::Dict(vec![("type".into(), Json::Str("function".into())), ("function".into(), t.clone())])
            }
        };
        Ok(match self {
            ToolFormat::Default => {
                let (mut text, mut names) = (String::new(), Vec::new());
                for tool in &tools {
                    let tool = match tool.get("function") {
                        Some(inner) if is_wrapped(tool) => inner,
                        None if is_wrapped(tool) => return Err("a tool of type `function` has no `function`".into()),
                        _ => tool,
                    };
                    let (name, entry) = describe_plainly(tool)?;
                    text += &entry;
                    names.push(name);
                }
                format!(
                    "You have access to the following tools:\n{text}Use the following format if using a tool:\n```\n\
                     Action: tool name (one of [{}])\n\
                     Action Input: the input to the tool, in a JSON format representing the kwargs \
                     (e.g. ```{{\"input\": \"hello world\", \"num_beams\": 5}}```)\n```\n",
                    names.join(", ")
                )
            }
            ToolFormat::Llama3 => {
                let text: String = tools.iter().map(|t| wrap(t).dumps(Some(4)) + "\n\n").collect();
                format!(
                    "Cutting Knowledge Date: December 2023\nToday Date: {today}\n\n\
                     You have access to the following functions. To call a function, please respond with JSON for a \
                     function call. Respond in the format {{\"name\": function name, \"parameters\": dictionary of \
                     argument name and its value}}. Do not use variables.\n\n{text}"
                )
            }
            ToolFormat::Mistral => {
                let wrapped = Json::List(tools.iter().map(wrap).collect());
                format!("[AVAILABLE_TOOLS] {}[/AVAILABLE_TOOLS]", wrapped.dumps(None))
            }
            ToolFormat::Qwen => {
                let text: String = tools.iter().map(|t| format!("\n{}", wrap(t).dumps(None))).collect();
                format!(
                    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
                     You are provided with function signatures within <tools></tools> XML tags:\n<tools>{text}\n\
                     </tools>\n\nFor each function call, return a json object with function name and arguments within \
                     <tool_call></tool_call> XML tags:\n<tool_call>\n{{\"name\": <function-name>, \
                     \"arguments\": <args-json-object>}}\n</tool_call>"
                )
            }
        })
    }

    /// A `function` turn's content, JSON of one call or of several, as the model is to write it.
    ///
    /// # Errors
    /// What is wrong with `json`, as a phrase.
    pub(super) fn write_calls(self, json: &str) -> Result<String, String> {
        let calls = match Json::parse(json).map_err(|e| format!("a function call is not JSON: {e}"))? {
            Json::List(items) => items,
            one => vec![one],
        };
        let calls = calls
            .iter()
            .map(|c| match (c.get("name"), c.get("arguments")) {
                (Some(name), Some(arguments)) => Ok(Call { name: name.clone(), arguments: arguments.clone() }),
                _ => Err("a function call must be an object with `name` and `arguments`".to_string()),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let object =
            |c: &Call, key: &str| Json::Dict(vec![("name".into(), c.name.clone()), (key.into(), c.arguments.clone())]);
        let lines = |f: &dyn Fn(&Call) -> String| calls.iter().map(f).collect::<Vec<_>>().join("\n");
        Ok(match self {
            ToolFormat::Default => {
                lines(&|c| format!("Action: {}\nAction Input: {}", c.name.py_str(), c.arguments.dumps(None)))
            }
            ToolFormat::Llama3 => match calls.as_slice() {
                [one] => object(one, "parameters").dumps(None),
                many => Json::List(many.iter().map(|c| object(c, "parameters")).collect()).dumps(None),
            },
            ToolFormat::Mistral => Json::List(calls.iter().map(|c| object(c, "arguments")).collect()).dumps(None),
            ToolFormat::Qwen => {
                lines(&|c| format!("<tool_call>\n{}\n</tool_call>", object(c, "arguments").dumps(None)))
            }
        })
    }
}

/// A tool's name and its entry in the plain format.
fn describe_plainly(tool: &Json) -> Result<(String, String), String> {
    let name = tool.get("name").ok_or("a tool has no `name`")?.py_str();
    let text = |v: Option<&Json>| v.map(Json::py_str).unwrap_or_default();
    let parameters = tool.get("parameters").ok_or_else(|| format!("tool `{name}` has no `parameters`"))?;
    let Some(Json::Dict(properties)) = parameters.get("properties") else {
        return Err(format!("tool `{name}` has no object `properties` in its `parameters`"));
    };
    let in_list: HashSet<&str> = match parameters.get("required") {
        Some(Json::List(keys)) => keys.iter().filter_map(Json::as_str).collect(),
        _ => HashSet::new(),
    };
    let mut args = String::new();
    for (key, param) in properties {
        if !matches!(param, Json::Dict(_)) {
            return Err(format!("tool `{name}`: parameter `{key}` must be an object"));
        }
        let required = match parameters.get("required") {
            // Python's `in` looks for a part of a string. Nobody means a long one, and to search it for each key takes long.
            Some(Json::Str(s)) => s.len() <= LONGEST_REQUIRED && s.contains(key.as_str()),
            _ => in_list.contains(key.as_str()),
        };
        let choices = match param.get("enum") {
            Some(Json::List(v)) if !v.is_empty() => {
                let v: Vec<_> = v.iter().map(Json::py_str).collect();
                format!(", should be one of [{}]", v.join(", "))
            }
            _ => String::new(),
        };
        let items = match param.get("items") {
            Some(v @ Json::Dict(fields)) if !fields.is_empty() => {
                format!(", where each item should be {}", text(v.get("type")))
            }
            _ => String::new(),
        };
        args += &format!(
            "  - {key} ({}{}): {}{choices}{items}\n",
            text(param.get("type")),
            if required { ", required" } else { "" },
            text(param.get("description")),
        );
    }
    let entry =
        format!("> Tool Name: {name}\nTool Description: {}\nTool Args:\n{args}\n", text(tool.get("description")));
    Ok((name, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_tools_are_named() {
        let e = ToolFormat::Qwen.describe("{\"name\": 1}", "").unwrap_err();
        assert!(e.contains("JSON array"), "{e}");
        let e = ToolFormat::Default.describe("[{\"name\": \"f\"}]", "").unwrap_err();
        assert!(e.contains("`f`") && e.contains("parameters"), "{e}");
        let e = ToolFormat::Qwen.write_calls("{\"name\": \"f\"}").unwrap_err();
        assert!(e.contains("arguments"), "{e}");
        assert_eq!(ToolFormat::Qwen.describe("[]", "").unwrap(), "");
    }

    /// Each would take minutes if every required name were compared with every parameter.
    #[test]
    fn many_parameters_are_described_in_linear_time() {
        let names = || (0..200_000).map(|i| format!("\"p{i}\""));
        let properties: Vec<String> = names().map(|n| format!("{n}: {{}}")).collect();
        let long = format!("\"{}\"", "x".repeat(1 << 20));
        for required in [format!("[{}]", names().collect::<Vec<_>>().join(", ")), long] {
            let tool = format!(
                "[{{\"name\": \"f\", \"parameters\": {{\"properties\": {{{}}}, \"required\": {required}}}}}]",
                properties.join(", ")
            );
            let start = std::time::Instant::now();
            let text = ToolFormat::Default.describe(&tool, "").unwrap();
            assert_eq!(text.contains("p199999 (, required)"), required.starts_with('['));
            assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
        }
        let tool =
            r#"[{"name": "f", "parameters": {"properties": {"city": {}, "day": {}}, "required": "city, unit"}}]"#;
        let text = ToolFormat::Default.describe(tool, "").unwrap();
        assert!(text.contains("city (, required)") && text.contains("day ()"), "{text}");
    }

    #[test]
    fn every_name_has_a_format() {
        assert!(ToolFormat::NAMES.iter().all(|n| ToolFormat::by_name(n).is_some()));
        assert_eq!(ToolFormat::by_name("glm4"), None);
    }
}
