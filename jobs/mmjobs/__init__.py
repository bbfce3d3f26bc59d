"""Everything that runs inside an allocation: model, data, objectives and the trainer."""
