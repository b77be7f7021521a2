"""How requests become pictures: a model is opened, a session is driven, pictures are saved."""
