"""Libraries that report home are told not to, before any of them is imported.

`import amlr` does it, so every entry point, worker process and Ray actor has it. A switch that the
user has set keeps its value; `AMLR_TELEMETRY=1` leaves all of them as their makers ship them.
"""

import os
import sys

SWITCHES = {
    # onnxruntime >= 1.29: events to Microsoft, a device id under ~/.cache/Microsoft.
    "ORT_DISABLE_TELEMETRY": "1",
    # transformers and huggingface_hub, where a hub name is given.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Ray: usage statistics.
    "RAY_USAGE_STATS_ENABLED": "0",
}
# OpenVINO and NNCF report through this package and do without it where it is absent; neither has
# a switch of its own. `import openvino` alone sends an event and writes ~/intel.
BLOCKED = "openvino_telemetry"


def switch_off() -> None:
    """Set the switches, unless the user wants telemetry (`AMLR_TELEMETRY=1`).

    A library that was imported before is left alone: what it says is its importer's business.
    """
    if os.environ.get("AMLR_TELEMETRY", "0") not in ("", "0"):
        return
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    # None makes an import fail with ModuleNotFoundError, as if the package were not installed.
    sys.modules.setdefault(BLOCKED, None)  # type: ignore[arg-type]
