"""What a compiled step costs on a device: operations, memory, messages and time. Knows no runs and no experiments."""
