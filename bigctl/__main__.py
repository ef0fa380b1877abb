import sys

from bigctl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
