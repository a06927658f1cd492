//! CLIP's tokenizer against transformers', on that part of the published vocabulary which the texts can use.

use model_zoo::tokenizer::{LENGTH, Tokenizer};
use ptsbench_tests::golden_topic;
use serde::Deserialize;

use crate::probe::{Tally, json};

#[derive(Deserialize)]
struct Text {
    text: String,
    /// Without the padding.
    ids: Vec<u32>,
    left_out: usize,
}

#[test]
fn tokenizer_texts() {
    let folder = golden_topic("tokenizer");
    let tokenizer = Tokenizer::open(&folder).unwrap_or_else(|error| panic!("{error}"));
    let expected = json(&folder.join("expected.json"));
    let texts: Vec<Text> = serde_json::from_value(expected["texts"].clone()).expect("texts");
    let mut tally = Tally::default();
    for Text {
        text,
        mut ids,
        left_out,
    } in texts
    {
        tally.exact(ids.len());
        ids.resize(LENGTH, 0);
        let encoded = tokenizer.encode(&text);
        assert_eq!(encoded.ids, ids, "{text:?}");
        assert_eq!(encoded.left_out, left_out, "{text:?}");
    }
    tally.report("tokenizer/texts");
}
