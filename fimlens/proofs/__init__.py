"""How theorems are stated, decided and printed; and `derive`."""
