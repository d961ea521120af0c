"""Bad inputs by kind: each row breaks a copy of one small world in one way and says what the sentence must name."""
