#!/bin/bash
# {{title}}
{{directives}}

set -euo pipefail
# Archon runs one process per machine, which starts and watches the machine's ranks and reports to the run folder.
exec srun --nodes={{nodes}} --ntasks={{nodes}} --ntasks-per-node=1 --kill-on-bad-exit=1 {{srun_options}} \
    {{command}}
