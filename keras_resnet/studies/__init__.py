"""The paper's own experiments, as anyone can repeat them."""
