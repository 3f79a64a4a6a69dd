"""`python -m tfmetarec.server --model_base_path=... --rest_api_port=8501`"""

import sys

from tfmetarec.server import main

sys.exit(main(sys.argv[1:]))
