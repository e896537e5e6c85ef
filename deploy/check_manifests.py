"""Checks the YAML files under deploy/ against the program and against each other; see check.sh."""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

DEPLOY = pathlib.Path(__file__).resolve().parent
METRICS = DEPLOY.parent / "proxy/src/telemetry/metrics.rs"
# A new pod serves within three minutes; the rest is for seeing the load and placing the pod.
STARTUP_MAX_S = 150
# Allowed because all placements share a type, and without a meaning: `local` has nowhere else to go.
NOT_SHOWN = {"placements.local.ttft"}


def main(program):
    faults = []
    documents = {path: list(read(path, faults)) for path in sorted(DEPLOY.rglob("*.yaml"))}
    faults += unexplained_keys(program, documents)
    faults += refused_configurations(program, documents)
    faults += missing_files(documents)
    faults += wrong_scaling(documents)
    faults += unknown_metrics(documents)
    for fault in faults:
        print(f"deploy: {fault}", file=sys.stderr)
    if not faults:
        print(f"deploy: {len(documents)} YAML files are well-formed and fit together")
    return 1 if faults else 0


def read(path, faults):
    """All documents of a file; what cannot be read is a fault."""
    try:
        yield from filter(None, yaml.safe_load_all(path.read_text()))
    except yaml.YAMLError as error:
        faults.append(f"{path.relative_to(DEPLOY)}: {error}")


def unexplained_keys(program, documents):
    """config/postern.yaml shows every key that there is; those that exclude others or need root, as comments that look like YAML."""
    schema = json.loads(subprocess.run([program, "config", "schema"], check=True, capture_output=True).stdout)
    text = (DEPLOY / "config/postern.yaml").read_text()
    commented = r"^( *)# ((?:prefix|files|spiffe|record|replaces|expect|user): [{/a-z].*)$"
    example = yaml.safe_load(re.sub(commented, r"\1\2", text, flags=re.MULTILINE))
    shown = set(keys(example)) if example else set()
    # A secret is one of two, which `targets` shows.
    alternative = {f"{name}.{source}" for name in shown for source in ("env", "file") if f"{name}.env" in shown or f"{name}.file" in shown}
    hidden = set(schema_keys(schema, schema)) - shown - alternative - NOT_SHOWN
    return [f"config/postern.yaml does not show `{name}`" for name in sorted(hidden)]


def keys(value, prefix=""):
    """Paths of all keys, such as `targets.openai.base_url`; lists leave no trace in a path."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{prefix}{name}"
            yield from keys(inner, f"{prefix}{name}.")
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner, prefix)


def schema_keys(node, schema, prefix=""):
    """As `keys`, of everything that a JSON Schema allows."""
    if "$ref" in node:
        node = {**schema["$defs"][node["$ref"].rsplit("/", 1)[1]], **{k: v for k, v in node.items() if k != "$ref"}}
    for name, inner in node.get("properties", {}).items():
        yield f"{prefix}{name}"
        yield from schema_keys(inner, schema, f"{prefix}{name}.")
    for inner in [node.get("items"), *node.get("anyOf", []), *node.get("oneOf", [])]:
        if isinstance(inner, dict):
            yield from schema_keys(inner, schema, prefix)


def refused_configurations(program, documents):
    """Configurations for Kubernetes: files for a generator, and any inside of a ConfigMap."""
    configurations = {path: path.read_text() for path in documents if path.name == "postern.yaml"}
    for path, parts in documents.items():
        for part in parts:
            if part.get("kind") == "ConfigMap" and "postern.yaml" in part.get("data", {}):
                configurations[path] = part["data"]["postern.yaml"]
    if not any("kubernetes" in path.parts for path in configurations):
        yield "no configuration for Kubernetes was found"
    for path, text in configurations.items():
        with tempfile.TemporaryDirectory() as scratch:
            file = pathlib.Path(scratch) / "postern.yaml"
            file.write_text(text)
            checked = subprocess.run([program, "check", "--config", file], capture_output=True, text=True)
        if checked.returncode != 0:
            yield f"{path.relative_to(DEPLOY)} is refused: {checked.stderr.strip()}"


def missing_files(documents):
    """What a kustomization names is there, and every manifest is named by one, apart from templates."""
    named = set()
    for path, parts in documents.items():
        for part in parts:
            if part.get("kind") != "Kustomization":
                continue
            files = [file for generator in part.get("configMapGenerator", []) for file in generator["files"]]
            for name in [*part.get("resources", []), *files]:
                named.add((path.parent / name).resolve())
                if not (path.parent / name).exists():
                    yield f"{path.relative_to(DEPLOY)} names {name}, which is not there"
    for path in documents:
        is_template = path.name == "kustomization.yaml" or ".example" in path.suffixes
        if "kubernetes" in path.parts and not is_template and path not in named:
            yield f"{path.relative_to(DEPLOY)} belongs to no kustomization"


def wrong_scaling(documents):
    """The figures that were promised: 3 to 20 replicas, CPU at 70 %, a new pod within three minutes."""
    parts = [part for found in documents.values() for part in found]
    scalers = [part["spec"] for part in parts if part.get("kind") == "HorizontalPodAutoscaler"]
    figures = []
    for spec in scalers:
        shares = [metric["resource"]["target"]["averageUtilization"] for metric in spec["metrics"]]
        figures.append((spec["minReplicas"], spec["maxReplicas"], shares))
    if figures != [(3, 20, [70])]:
        yield f"the autoscaler has {figures} instead of 3 to 20 replicas at 70 %"
    sets = [part["spec"]["template"]["spec"]["containers"] for part in parts if part.get("kind") == "StatefulSet"]
    for container in (container for containers in sets for container in containers):
        probe = container["startupProbe"]
        seconds = probe["periodSeconds"] * probe["failureThreshold"] + probe.get("initialDelaySeconds", 0)
        if seconds > STARTUP_MAX_S:
            yield f"the start-up probe of {container['name']} allows {seconds} s instead of {STARTUP_MAX_S} s"


def unknown_metrics(documents):
    """Rules use metrics that the gateway exports."""
    source = METRICS.read_text()
    kinds = dict(re.findall(r"^    (\w+): .*?(Counter|Gauge|Histogram)", source, re.MULTILINE))
    endings = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}
    exported = {
        name + ending
        for name, field in re.findall(r'register\(\s*"(\w+)",\s*"[^"]*",\s*self\.(\w+)', source)
        for ending in endings[kinds[field]]
    }
    if not exported:
        yield "no metrics were found in proxy/src/telemetry/metrics.rs"
    for part in documents.get(DEPLOY / "prometheus/rules.yaml", []):
        for rule in (rule for group in part["groups"] for rule in group["rules"]):
            for name in re.findall(r"\b(?:postern_\w+|queue_depth|inference_latency)\b", rule["expr"]):
                if name not in exported:
                    yield f"prometheus/rules.yaml uses {name}, which the gateway does not export"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
