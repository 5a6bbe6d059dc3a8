//! What is answered, whole and streamed.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use super::{CHAT, Server, chat, read, run};
use crate::serve::double::Script;
use crate::serve::options::Options;

#[test]
fn a_chat_is_answered_whole_and_streamed_alike() {
    run(async {
        let s = Server::new(Options::default(), "the people of the world");
        let (status, whole) = s.told(CHAT, chat(json!({"n": 2, "seed": 5}))).await;
        assert_eq!((status, &whole["object"], &whole["model"]), (200, &json!("chat.completion"), &json!("medical")));
        for i in 0..2 {
            let choice = &whole["choices"][i];
            assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(i), &json!("stop")));
            assert_eq!(choice["message"], json!({"role": "assistant", "content": "the people of the world"}));
        }
        let tokens = s.ids("the people of the world").len();
        let asked = s.double.asked.lock().unwrap().clone();
        assert_eq!(
            (asked[0].sampling.seed, asked[1].sampling.seed, asked[0].adapter, asked[0].max_new_tokens),
            (5, 6, Some(3), 64)
        );
        let prompt = asked[0].prompt.len();
        assert_eq!(
            whole["usage"],
            json!({
                "prompt_tokens": prompt, "completion_tokens": 2 * tokens, "total_tokens": prompt + 2 * tokens,
                "prompt_tokens_details": {"cached_tokens": 2},
            })
        );

        let (events, done) =
            s.events(CHAT, chat(json!({"stream": true, "stream_options": {"include_usage": true}}))).await;
        assert!(done);
        assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, "the people of the world");
        let [.., finish, usage] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((&finish["choices"][0]["finish_reason"], &finish["usage"]), (&json!("stop"), &Value::Null));
        assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(tokens)));
        let ids: Vec<&Value> = events.iter().map(|e| &e["id"]).collect();
        assert!(ids.iter().all(|id| *id == ids[0] && id.as_str().unwrap().starts_with("chatcmpl-")));
    });
}

#[test]
fn stop_strings_end_an_answer_and_its_sequence() {
    run(async {
        let s = Server::new(Options::default(), "");
        s.script(Script::Wait(s.ids("the people of the world are in the house")));
        let (_, whole) = s.told(CHAT, chat(json!({"stop": ["world", "xyz"]}))).await;
        assert_eq!(whole["choices"][0]["message"]["content"], "the people of the ");
        assert_eq!((&whole["choices"][0]["finish_reason"], s.double.wanted()), (&json!("stop"), 0));
        let (events, done) = s.events(CHAT, chat(json!({"stop": "world", "stream": true}))).await;
        let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!((text.as_str(), done, s.double.wanted()), ("the people of the ", true, 0));
        // Cut at the length asked for.
        s.script(Script::Say(s.ids("the people of the world")));
        let (_, whole) = s.told(CHAT, chat(json!({"max_tokens": 2}))).await;
        assert_eq!(
            (&whole["choices"][0]["finish_reason"], &whole["usage"]["completion_tokens"]),
            (&json!("length"), &json!(2))
        );
    });
}

#[test]
fn calls_of_tools_are_taken_apart() {
    run(async {
        let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>";
        let s = Server::new(Options::default(), &format!("I look. {call}"));
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}});
        let (_, whole) = s.told(CHAT, chat(json!({"tools": [tool]}))).await;
        let choice = &whole["choices"][0];
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &json!("I look.")),
            "{whole}"
        );
        let made = &choice["message"]["tool_calls"][0];
        assert_eq!(
            (&made["type"], &made["function"]),
            (&json!("function"), &json!({"name": "f", "arguments": "{\"x\": 1}"}))
        );
        assert!(made["id"].as_str().unwrap().starts_with("call_"));
        let (events, done) = s.events(CHAT, chat(json!({"tools": [tool], "stream": true}))).await;
        let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
        assert!(done && text.trim() == "I look.", "{text:?}");
        let calls: Vec<&Value> =
            events.iter().map(|e| &e["choices"][0]["delta"]["tool_calls"]).filter(|c| !c.is_null()).collect();
        assert_eq!((calls.len(), &calls[0][0]["index"], &calls[0][0]["function"]["name"]), (1, &json!(0), &json!("f")));
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
        // Nobody asked for tools: it is text.
        let (_, whole) = s.told(CHAT, chat(json!({}))).await;
        assert!(whole["choices"][0]["message"]["content"].as_str().unwrap().contains("<tool_call>"));
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    });
}

#[test]
fn completions_of_texts_and_of_ids() {
    run(async {
        let s = Server::new(Options::default(), "the world");
        let ids = s.ids("the world");
        let body = json!({"model": "base", "prompt": ["a house", "b"], "n": 2, "logprobs": 2, "temperature": 0});
        let (status, whole) = s.told("/v1/completions", body.clone()).await;
        assert_eq!(
            (status, whole["choices"].as_array().unwrap().len(), &whole["object"]),
            (200, 4, &json!("text_completion"))
        );
        let choice = &whole["choices"][3];
        assert_eq!((&choice["index"], &choice["text"]), (&json!(3), &json!("the world")));
        let logprobs = &choice["logprobs"];
        assert_eq!(logprobs["token_logprobs"], json!(vec![-0.5; ids.len()]));
        let tokens: String = logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        assert_eq!((tokens.as_str(), &logprobs["text_offset"][0]), ("the world", &json!(0)));
        assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap().len(), 2);
        let asked = s.double.asked.lock().unwrap().clone();
        assert!(asked.iter().all(|r| r.adapter.is_none() && r.sampling.is_greedy() && r.logprobs == Some(2)));
        assert_eq!((&asked[0].prompt, &asked[2].prompt), (&s.ids("a house"), &s.ids("b")));

        let (events, done) = s
            .events("/v1/completions", json!({"model": "base", "prompt": [5, 6], "stream": true, "logprobs": 0}))
            .await;
        let text: String = events.iter().map(|e| e["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!((text.as_str(), done), ("the world", true));
        let scored: usize =
            events.iter().map(|e| e["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len()).sum();
        assert_eq!(scored, ids.len());
        assert_eq!(s.double.asked.lock().unwrap().last().unwrap().prompt, [5, 6]);
        let (status, e) = s.told("/v1/completions", json!({"model": "base", "prompt": [5, 1 << 16]})).await;
        assert_eq!((status, &e["error"]["param"]), (400, &json!("prompt")));
    });
}

#[test]
fn chat_logprobs_are_complete() {
    run(async {
        let s = Server::new(Options::default(), "the people of the world");
        let n = s.ids("the people of the world").len();
        let wanted = json!({"logprobs": true, "top_logprobs": 1});
        let (_, whole) = s.told(CHAT, chat(wanted.clone())).await;
        let content = whole["choices"][0]["logprobs"]["content"].as_array().unwrap();
        let text: String = content.iter().map(|t| t["token"].as_str().unwrap()).collect();
        assert_eq!((content.len(), text.as_str()), (n, "the people of the world"));
        assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 1);
        let mut body = chat(wanted);
        body["stream"] = json!(true);
        let (events, _) = s.events(CHAT, body).await;
        let lists = events.iter().filter_map(|e| e["choices"][0]["logprobs"]["content"].as_array());
        assert_eq!(lists.map(Vec::len).sum::<usize>(), n);
    });
}

#[test]
fn questions_of_the_tutorial_are_answered() {
    run(async {
        let s = Server::new(Options::default(), "the world");
        let by_query = Request::post("/answer?question=What+is+it%3F").body(Body::empty()).unwrap();
        assert_eq!(read(s.send(by_query).await).await, (200, json!({"answer": "the world"})));
        assert_eq!(s.told("/answer", json!({"question": "What is it?"})).await, (200, json!({"answer": "the world"})));
        let asked = s.double.asked.lock().unwrap().clone();
        assert_eq!(asked[0].prompt, asked[1].prompt);
        assert_eq!((asked[0].adapter, asked[0].sampling.do_sample), (Some(3), true));
    });
}
