"""`python -m enhanced_agent_bus`: the same as the command `eab`."""

from enhanced_agent_bus.cli import main

if __name__ == "__main__":
    main()
