"""How a request becomes pictures: a model is opened, a session is driven, pictures are kept."""
