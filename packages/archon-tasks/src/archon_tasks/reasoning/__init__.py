"""Problems and scores of reasoning-gym."""
