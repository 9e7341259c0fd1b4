//! A folder of Hugging Face's: `model.safetensors`, whose names have no prefix, `config.json`, which says what the network is, and a card.

use super::Delivery;
use crate::run::tensors::save_safetensors;
use anyhow::Result;
use std::collections::HashMap;

pub(super) fn write(delivery: &mut Delivery) -> Result<()> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let tensors = delivery.encoder();
    save_safetensors(&delivery.file("model.safetensors")?, &tensors, metadata)?;
    let about = delivery.about();
    delivery.json("config.json", &about)?;
    delivery.card(
        "pytorch",
        &[],
        "`model.safetensors` is the encoder's state dict, `config.json` its shape and input: scans `[B, C, x, y, z]` in RAS+ orientation.",
    )
}
