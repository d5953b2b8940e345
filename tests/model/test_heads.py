"""One linear layer on [CLS] as the head, and dropout before heads."""

import pytest
import torch
from transformers import AutoModelForTokenClassification

from bertray.errors import ConfigError
from bertray.model.bundle import load_model
from bertray.model.heads import head_modules, load_classifier, set_dropout

IDS = torch.tensor([[1, 7, 9, 2], [1, 8, 2, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def test_a_linear_head_is_plain_hugging_faces_token_classifier_at_the_first_token(make_bundle):
    bundle = make_bundle("bert-linear")
    plain = AutoModelForTokenClassification.from_pretrained(bundle.folder).eval()
    with torch.inference_mode():
        found = load_model(bundle)(input_ids=IDS, attention_mask=MASK).logits
        wanted = plain(input_ids=IDS, attention_mask=MASK).logits[:, 0]
        hidden = plain.bert(input_ids=IDS, attention_mask=MASK).last_hidden_state[:, 0]
        by_hand = hidden @ plain.classifier.weight.T + plain.classifier.bias
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found, by_hand)


def test_a_family_whose_token_classifier_is_more_has_no_linear_head(make_bundle):
    with pytest.raises(ConfigError, match=r"model\.head=linear: modernbert has none"):
        load_classifier(make_bundle("modernbert").folder, head="linear")


def test_dropout_is_set_in_the_head_and_nowhere_else(make_bundle, family):
    model = load_model(make_bundle(family))
    inside = [m.p for m in model.base_model.modules() if isinstance(m, torch.nn.Dropout)]
    set_dropout(model, 0.37)
    shares = [m.p for m in head_modules(model) if isinstance(m, torch.nn.Dropout)]
    assert shares
    assert set(shares) == {0.37}
    after = [m.p for m in model.base_model.modules() if isinstance(m, torch.nn.Dropout)]
    assert after == inside
