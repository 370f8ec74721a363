"""Networks side by side on one machine: a process for each, in turns, medians and ratios."""
