"""``python -m archon_core.cli`` runs ``archon``; launchers start ranks with it."""

from archon_core.cli.main import main

if __name__ == "__main__":
    main()
