"""Settings of what a training learns from beside its labelled rows."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bertray.config.section import Alpha, Count, Positive, Section, Share

Method = Literal["synonyms", "swap", "deletion", "masked", "back_translation"]


class Augmentation(Section):
    """Changed copies of training rows, with their labels; validation rows have none."""

    methods: tuple[Method, ...] = Field(
        (),
        description="How copies are made, each method its own: `synonyms`, `swap` and `deletion` "
        "of words (EDA, Wei & Zou 2019), `masked` (words guessed by a masked language model), "
        "`back_translation`. Of a pair one text, drawn at random, changes. Default: no copies.",
    )
    row_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Share of the training rows that have copies, drawn by `training.seed`."
    )
    num_copies: Count = Field(1, description="Copies of such a row by each method.")
    synonyms_alpha: Alpha = Field(0.1, description="Share of words that `synonyms` replaces.")
    swap_alpha: Alpha = Field(0.1, description="Swaps of two words by `swap`, per word.")
    deletion_alpha: Alpha = Field(0.1, description="Chance that `deletion` takes a word out.")
    masked_alpha: Alpha = Field(0.15, description="Share of words that `masked` replaces.")
    wordnet: str | None = Field(
        None,
        description="NLTK data folder that holds `corpora/wordnet`, on all nodes. Default: where "
        "NLTK looks.",
    )
    masked_model: str | None = Field(
        None, description="Masked language model for `masked`: hub id, folder or URI."
    )
    translation_models: tuple[str, str] | None = Field(
        None,
        description="Models for `back_translation`, there and back, as in "
        "`[Helsinki-NLP/opus-mt-en-de, Helsinki-NLP/opus-mt-de-en]`: hub ids, folders or URIs of "
        "models that need not be told the languages.",
    )

    @model_validator(mode="after")
    def _complete(self) -> "Augmentation":
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("augmentation.methods names one twice; raise augmentation.num_copies")
        for method, key in (
            ("masked", "masked_model"),
            ("back_translation", "translation_models"),
        ):
            if (method in self.methods) != (getattr(self, key) is not None):
                raise ValueError(
                    f"augmentation.methods={list(self.methods)}: {method} and "
                    f"augmentation.{key} go together; give both or neither"
                )
        return self


class Distillation(Section):
    """A trained model whose probabilities are learnt beside the labels (Hinton et al. 2015)."""

    teacher: str | None = Field(
        None,
        description="A bundle, any Hugging Face sequence-classification folder, hub id or URI, or "
        "a version in `distillation.store` as `bertray score` takes it (`store://NAME@champion`, "
        "`models:/NAME/3`), of the same labels as the data, one a row. Default: no teacher.",
    )
    store: str | None = Field(
        None, description="Folder or URI of the model store it is in, MLflow's included."
    )
    temperature: Positive = Field(
        2.0, description="Logits of both models are divided by it; higher says more of all labels."
    )
    alpha: Share = Field(
        0.5, description="Weight of what the teacher says in the loss; the labels have the rest."
    )
