"""A report with every part that one can have."""

from __future__ import annotations

from typing import Any


def a_whole_report(
    *,
    name: str = "demo",
    devices: int = 5,
    rounds: int = 2,
    task: str = "text-classification",
) -> dict[str, Any]:
    """A report in which everything that people or devices may name contains ``name``."""
    names = [
        name + f"-{number}" if name != "demo" else f"device-{number}"
        for number in range(1, devices + 1)
    ]
    numbers = range(1, rounds + 1)
    return {
        "run": name,
        "seed": 1,
        "devices": devices,
        "rounds": rounds,
        "transport": "mqtt",
        "task": task,
        "trainable": {"method": "lora", "parameters": 9241},
        "accuracy": {
            "before": {"all": 0.519, "en": 0.731, name: 0.095},
            "after": {"all": 0.692, "en": 0.908, name: 0.259},
            "central": {"all": 0.740, "en": 0.926, name: 0.370},
        },
        "loss": {"before": 2.1, "after": 1.1},
        "epsilon": dict.fromkeys(names, 7.99),
        "epsilon_by_round": {
            device: {str(n): round(0.5 + 0.01 * place + 7.0 * n / rounds, 4) for n in numbers}
            for place, device in enumerate(names)
        },
        "privacy": {
            "noise": "local",
            "epsilon_asked": 8.0,
            "delta": 1e-5,
            "noise_multiplier": 1.807,
            "level": "record",
            "repeatable_noise": True,
        },
        "bytes_out": {device: {str(n): 118_539 for n in numbers} for device in names},
        "protection": {
            "scheme": "public-key",
            "parameters": "bfv-4096",
            "bits": 12,
            "min_devices": 4,
            "values": 9241,
            "update_bytes": 116_872,
            "bytes_per_value": 12.647,
        },
        "history": [
            {
                "round": n,
                "invited": devices,
                "reported": devices,
                "accuracy": {"all": 0.6, "en": 0.8, name: 0.2},
                "loss": 1.5,
                "accepted": True,
            }
            for n in numbers
        ],
        "who_could_see": [{"what": f"texts {name}", "who": f"the device alone {name}"}],
        "base_model": {"name": f"hub/{name}", "sha256": "53" * 32},
        "adapter_hash": "9c" * 32,
        "language_model": {"name": f"tiny {name}", "stand_in": True},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "stages": {"prepare": 0.8, "other_rounds": 32.4},
        "examples": {"by_device": dict.fromkeys(names, 800), "held_out": 1008, "labels": 24},
        "adversary": {
            "kind": "label-flip",
            "share": 0.2,
            "factor": -10.0,
            "devices": names[1:2],
        },
        "answers": {
            "threshold": 0.62,
            "target_error": 0.02,
            "redacted": 3,
            "local": 57,
            "cloud": 9,
            "reasons": {f"confident {name}": 57, "out-of-scope": 9},
            "examples": [
                {
                    "question": f"where is it? {name}",
                    "answer": f"on its way {name}",
                    "source": "device",
                    "reason": f"sure {name}",
                    "confidence": 0.94,
                },
                {
                    "question": "who are you?",
                    "answer": "a model",
                    "source": "coordinator",
                    "stand_in": True,
                    "reason": "out of scope",
                    "confidence": None,
                },
            ],
            "curve": [
                {"threshold": t / 10, "local_share": 1 - t / 10, "accuracy": 0.7 + t / 40}
                for t in range(11)
            ],
        },
        "model": {
            "passes": [
                {
                    "name": f"export {name}",
                    "nodes": 612,
                    "bytes": 90_900_000,
                    "p50_ms_32": 7.9,
                    "p50_ms_128": 29.4,
                    "agreement": 1.0,
                }
            ]
        },
    }
