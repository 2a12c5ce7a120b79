"""An edge client: sync and submit experts, with or without Flower; and the border to torch and PEFT."""
