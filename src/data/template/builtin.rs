//! The templates by name, as data.

use super::tools::ToolFormat;
use super::{Slot, Template};

/// Every template's name, in the order they are offered.
pub const NAMES: [&str; 14] = [
    "qwen3",
    "qwen3_nothink",
    "qwen",
    "llama2",
    "llama2_zh",
    "llama3",
    "mistral",
    "ministral",
    "chatml",
    "alpaca",
    "vicuna",
    "deepseek",
    "default",
    "empty",
];

fn text(s: &str) -> Slot {
    Slot::Text(s.to_string())
}

/// The template called `name`, or None.
pub(super) fn by_name(name: &str) -> Option<Template> {
    let base = Template::plain(name);
    Some(match name {
        "qwen3" => Template { reasoning: true, ..qwen(base) },
        "qwen3_nothink" => qwen(base),
        "qwen" => Template {
            default_system: "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.".into(),
            ..qwen(base)
        },
        "chatml" => Template {
            observation: vec![text("<|im_start|>tool\n{{content}}<|im_end|>\n<|im_start|>assistant\n")],
            function_format: ToolFormat::Default,
            tool_format: ToolFormat::Default,
            stop_words: vec!["<|im_end|>".into(), "<|im_start|>".into()],
            replace_jinja_template: true,
            ..qwen(base)
        },
        "llama2" => llama2(base),
        "llama2_zh" => Template {
            default_system: "You are a helpful assistant. 你是一个乐于助人的助手。".into(),
            ..llama2(base)
        },
        "llama3" => {
            let turn = |role: &str| {
                vec![text(&format!(
                    "<|start_header_id|>{role}<|end_header_id|>\n\n{{{{content}}}}<|eot_id|>\
                     <|start_header_id|>assistant<|end_header_id|>\n\n"
                ))]
            };
            Template {
                prefix: vec![Slot::Bos],
                system: vec![text("<|start_header_id|>system<|end_header_id|>\n\n{{content}}<|eot_id|>")],
                user: turn("user"),
                observation: turn("ipython"),
                assistant: vec![text("{{content}}<|eot_id|>")],
                function: vec![text("{{content}}<|eot_id|>")],
                function_format: ToolFormat::Llama3,
                tool_format: ToolFormat::Llama3,
                stop_words: vec!["<|eot_id|>".into(), "<|eom_id|>".into()],
                replace_eos: true,
                ..base
            }
        }
        "mistral" => Template { assistant: vec![text(" {{content}}"), Slot::Eos], ..mistral(base, " ") },
        "ministral" => mistral(base, ""),
        "alpaca" => {
            let answer = vec![text("{{content}}"), Slot::Eos, text("\n\n")];
            Template {
                user: vec![text("### Instruction:\n{{content}}\n\n### Response:\n")],
                observation: vec![text("### Instruction:\n{{content}}\n\n### Response:\n")],
                assistant: answer.clone(),
                function: answer,
                default_system: "Below is an instruction that describes a task. \
                                 Write a response that appropriately completes the request.\n\n"
                    .into(),
                replace_jinja_template: true,
                ..base
            }
        }
        "vicuna" => Template {
            user: vec![text("USER: {{content}} ASSISTANT:")],
            observation: vec![text("USER: {{content}} ASSISTANT:")],
            default_system: "A chat between a curious user and an artificial intelligence assistant. \
                             The assistant gives helpful, detailed, and polite answers to the user's questions."
                .into(),
            replace_jinja_template: true,
            ..base
        },
        "deepseek" => Template {
            prefix: vec![Slot::Bos],
            system: vec![text("{{content}}\n\n")],
            user: vec![text("User: {{content}}\n\nAssistant:")],
            observation: vec![text("User: {{content}}\n\nAssistant:")],
            ..base
        },
        "default" => {
            let question = vec![text("Human: {{content}}"), Slot::Eos, text("\nAssistant:")];
            let answer = vec![text("{{content}}"), Slot::Eos, text("\n")];
            Template {
                system: vec![text("System: {{content}}"), Slot::Eos, text("\n")],
                user: question.clone(),
                observation: question,
                assistant: answer.clone(),
                function: answer,
                replace_jinja_template: true,
                ..base
            }
        }
        // For benchmarks alone: in training LLaMA-Factory gives it the eos token that `super` speaks of.
        "fewshot" => {
            let answer = vec![text("{{content}}\n\n")];
            Template { assistant: answer.clone(), function: answer, replace_jinja_template: true, ..base }
        }
        "empty" => Template { assistant: vec![text("{{content}}")], function: vec![text("{{content}}")], ..base },
        _ => return None,
    })
}

/// The turns that all of Qwen's templates share.
fn qwen(base: Template) -> Template {
    Template {
        system: vec![text("<|im_start|>system\n{{content}}<|im_end|>\n")],
        user: vec![text("<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n")],
        observation: vec![text(
            "<|im_start|>user\n<tool_response>\n{{content}}\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        )],
        assistant: vec![text("{{content}}<|im_end|>\n")],
        function: vec![text("{{content}}<|im_end|>\n")],
        function_format: ToolFormat::Qwen,
        tool_format: ToolFormat::Qwen,
        stop_words: vec!["<|im_end|>".into()],
        replace_eos: true,
        ..base
    }
}

fn llama2(base: Template) -> Template {
    Template {
        system: vec![text("<<SYS>>\n{{content}}\n<</SYS>>\n\n")],
        user: vec![Slot::Bos, text("[INST] {{content}} [/INST]")],
        observation: vec![Slot::Bos, text("[INST] {{content}} [/INST]")],
        system_in_user: true,
        ..base
    }
}

/// Mistral's turns; `gap` follows each opening tag.
fn mistral(base: Template, gap: &str) -> Template {
    Template {
        prefix: vec![Slot::Bos],
        system: vec![text("{{content}}\n\n")],
        user: vec![text(&format!("[INST]{gap}{{{{content}}}}[/INST]"))],
        observation: vec![text(&format!("[TOOL_RESULTS]{gap}{{\"content\": {{{{content}}}}}}[/TOOL_RESULTS]"))],
        function: vec![text(&format!("[TOOL_CALLS]{gap}{{{{content}}}}")), Slot::Eos],
        function_format: ToolFormat::Mistral,
        tool_format: ToolFormat::Mistral,
        system_in_user: true,
        ..base
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_template_and_every_turn_its_content() {
        for name in NAMES {
            let t = by_name(name).unwrap_or_else(|| panic!("{name} is not built"));
            assert_eq!(t.name, name);
            for slots in [&t.system, &t.user, &t.assistant, &t.function, &t.observation] {
                let holes = slots.iter().filter(|s| matches!(s, Slot::Text(t) if t.contains("{{content}}"))).count();
                assert_eq!(holes, 1, "{name}: {slots:?}");
            }
            assert!(!t.replace_eos || !t.stop_words.is_empty(), "{name} replaces eos by nothing");
        }
        assert!(by_name("qwen4").is_none());
    }
}
