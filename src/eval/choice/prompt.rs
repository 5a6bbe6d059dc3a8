//! A question as the model is asked it, in the words of LLaMA-Factory's evaluation templates.

use super::CHOICES;
use super::tables::Item;
use crate::config::Lang;
use crate::data::{Message, Role};

/// What stands before the first question, and after each.
fn words(lang: Lang, subject: &str) -> (String, &'static str) {
    match lang {
        Lang::En => {
            (format!("The following are multiple choice questions (with answers) about {subject}.\n\n"), "\nAnswer:")
        }
        Lang::Zh => (format!("以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。\n\n"), "\n答案："),
    }
}

/// A conversation: each of `shots` asked and answered, then `item`, whose answer comes last.
pub(super) fn messages(item: &Item, shots: &[Item], subject: &str, lang: Lang) -> Vec<Message> {
    let (system, answer) = words(lang, subject);
    let mut messages = Vec::with_capacity(2 * shots.len() + 2);
    for (i, item) in shots.iter().chain([item]).enumerate() {
        let before = if i == 0 { &system } else { "" };
        let choices: String =
            CHOICES.iter().zip(&item.choices).map(|(letter, text)| format!("\n{letter}. {text}")).collect();
        let content = format!("{before}{}{choices}{answer}", item.question);
        messages.push(Message { role: Role::User, content });
        messages.push(Message { role: Role::Assistant, content: CHOICES[item.answer].to_string() });
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_come_first_and_the_subject_once() {
        let item = |question: &str, answer| Item {
            question: question.into(),
            choices: ["1", "2", "3", "4"].map(String::from),
            answer,
        };
        let all = messages(&item("1 + 2 = ?", 2), &[item("1 + 1 = ?", 1)], "arithmetic", Lang::En);
        let texts: Vec<&str> = all.iter().map(|m| m.content.as_str()).collect();
        assert_eq!(
            texts,
            [
                "The following are multiple choice questions (with answers) about arithmetic.\n\n\
                 1 + 1 = ?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:",
                "B",
                "1 + 2 = ?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:",
                "C"
            ]
        );
        let zh = messages(&item("一加一", 1), &[], "算术", Lang::Zh);
        assert_eq!(
            zh[0].content,
            "以下是中国关于算术考试的单项选择题，请选出其中的正确答案。\n\n一加一\nA. 1\nB. 2\nC. 3\nD. 4\n答案："
        );
    }
}
