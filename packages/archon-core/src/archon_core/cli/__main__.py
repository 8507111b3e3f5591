"""``python -m archon_core.cli`` is ``archon``; launchers start ranks by it."""

from archon_core.cli.main import main

if __name__ == "__main__":
    main()
