"""What ways of coding one LoRA expert keep of what it gained: experts, their evaluation, the ways, and the table."""
