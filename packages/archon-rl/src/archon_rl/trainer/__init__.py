"""The trainers (``RLTrainer``, ``SFTTrainer``) and the parts that they share."""
