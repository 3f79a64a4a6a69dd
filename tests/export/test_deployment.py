"""Deployment files parse, agree with each other, and do what they are for on a real server."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
import yaml
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

import tfmetarec as tmr
from tfmetarec.export.deployment import MARK, check_serving_config, write_serving_config
from tfmetarec.export.deployment.messages import parse
from tfmetarec.server import BatchingOptions, Server, StatusError, config, flags

EXAMPLE = Path(__file__).parents[2] / "serving"
PLAIN = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}


@pytest.fixture(scope="module")
def shop(shops, make_learner, tmp_path_factory):
    """A base path with two versions: ratings, ids that are words, and user features of every kind."""
    base = tmp_path_factory.mktemp("work") / "models" / "shop"
    tmr.export.saved_model(make_learner(shops["explicit"][1]), base, top_k=4, warmup_batches=(1, 8, 32))
    # What these tests ask of the warm-up is that it takes some time; all its records would take them half a minute.
    warmup = str(base / "1" / "assets.extra" / "tf_serving_warmup_requests")
    first = next(iter(tf.data.TFRecordDataset(warmup))).numpy()
    with tf.io.TFRecordWriter(warmup) as writer:
        writer.write(first)
    shutil.copytree(base / "1", base / "2")
    return base


@pytest.fixture(scope="module")
def files(shop):
    """What is written for the shop, for a server on this machine."""
    write_serving_config(shop, shop.parents[1] / "serving", stable=1, canary=2, mount=str(shop.parent))
    return shop.parents[1] / "serving"


@pytest.fixture
def folder(shop, tmp_path):
    """A folder of files, to be edited."""
    write_serving_config(shop, tmp_path / "serving", stable=1, canary=2)
    return tmp_path / "serving"


def serve(files, **options):
    options = {"allow_labels_for_unavailable": True, "warmup_iterations": 0, **options}
    return Server(model_config_file=files / "models.config", **options)


def get(server, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_api_port}{path}", timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def ask(server, name, signature, inputs):
    body = json.dumps({"signature_name": signature, "inputs": inputs}).encode()
    url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/{name}/labels/stable:predict"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as response:
        return json.load(response)["outputs"]


def version_called(server, label, name="shop"):
    status, text = get(server, f"/v1/models/{name}/labels/{label}/metadata")
    return int(json.loads(text)["model_spec"]["version"]) if status == 200 else None


def wait_for(condition, timeout_s=15.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


# -- what is written ---------------------------------------------------------------------------------------


def committed():
    return {path: text for path, text in contents(EXAMPLE).items() if MARK in text and path != "README.md"}


@pytest.mark.slow
def test_the_committed_example_is_what_is_written_for_journey(tmp_path):
    data = tmr.data.load("synthetic", n_users=40, n_items=40, interactions_per_user=8, seed=0)
    learner = tmr.meta.MAML(tmr.models.TwoTower(tmr.data.Vocabulary.fit(data), 4))
    base = tmp_path / "exports" / "journey"
    tmr.export.saved_model(learner, base, top_k=5, warmup_batches=(1, 8, 32))
    shutil.copytree(base / "1", base / "2")
    write_serving_config(base, tmp_path / "serving", stable=1, canary=2)
    assert committed() == contents(tmp_path / "serving")


def test_the_committed_example_is_up_to_date_and_holds_together(shop, tmp_path):
    """Quickly: for another model under its name, of which only the requests differ."""
    shutil.copytree(shop, tmp_path / "exports" / "journey")
    written = write_serving_config(tmp_path / "exports" / "journey", tmp_path / "serving", stable=1, canary=2)
    ours = contents(tmp_path / "serving")
    assert {str(path.relative_to(tmp_path / "serving")) for path in written} == ours.keys() == committed().keys()
    for path, text in committed().items():
        assert path.startswith("clients/") or text == ours[path], path
    check_serving_config(EXAMPLE)
    for script in ("make_ssl_config.sh", "clients/client.sh"):
        assert os.access(EXAMPLE / script, os.X_OK)
        assert os.access(tmp_path / "serving" / script, os.X_OK)


def test_the_newest_version_is_stable_and_nothing_a_canary_unless_asked_for(shop, tmp_path):
    write_serving_config(shop, tmp_path)
    (model,) = parse((tmp_path / "models.config").read_text(), "ModelServerConfig").model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("shop", "/models/shop", "tensorflow")
    assert list(model.model_version_policy.specific.versions) == [2]
    assert dict(model.version_labels) == {"stable": 2}
    (_, canary) = yaml.safe_load_all((tmp_path / "kubernetes" / "canary.yaml").read_text())
    assert canary["spec"]["replicas"] == 0


def test_with_a_canary_both_versions_are_loaded_and_its_pods_call_it_stable(folder):
    (model,) = parse((folder / "models.config").read_text(), "ModelServerConfig").model_config_list.config
    assert list(model.model_version_policy.specific.versions) == [1, 2]
    assert dict(model.version_labels) == {"stable": 1, "canary": 2}
    config_map, pods = yaml.safe_load_all((folder / "kubernetes" / "canary.yaml").read_text())
    (model,) = parse(config_map["data"]["models.config"], "ModelServerConfig").model_config_list.config
    assert list(model.model_version_policy.specific.versions) == [2]
    assert dict(model.version_labels) == {"stable": 2}
    assert pods["spec"]["replicas"] == 1


def test_batches_have_the_sizes_that_were_warmed_up(folder):
    batching = parse((folder / "batching.config").read_text(), "BatchingParameters")
    assert list(batching.allowed_batch_sizes) == [1, 8, 32]
    assert batching.max_batch_size.value == 32
    assert batching.pad_variable_length_inputs


def with_warmup(shop, base, warmed):
    """A copy of the shop whose versions say that they were warmed up so; `None` for not saying."""
    shutil.copytree(shop, base)
    for version, batches in warmed.items():
        path = base / version / "assets.extra" / "tfmetarec.json"
        card = json.loads(path.read_text()) | {"warmup_batches": batches}
        path.write_text(json.dumps({name: value for name, value in card.items() if value is not None}))
    return base


def test_batches_fit_every_version_that_is_loaded_not_the_newest_alone(shop, tmp_path):
    base = with_warmup(shop, tmp_path / "shop", {"1": [1, 64], "2": [1, 8]})
    write_serving_config(base, tmp_path / "serving", stable=2, canary=1)
    batching = parse((tmp_path / "serving" / "batching.config").read_text(), "BatchingParameters")
    assert list(batching.allowed_batch_sizes) == [1, 8, 64]
    write_serving_config(base, tmp_path / "serving", stable=2)
    batching = parse((tmp_path / "serving" / "batching.config").read_text(), "BatchingParameters")
    assert list(batching.allowed_batch_sizes) == [1, 8]


@pytest.mark.parametrize("warmed", [[1], None])
def test_where_single_requests_alone_were_warmed_up_larger_batches_are_allowed_and_it_is_said(shop, tmp_path, warmed):
    base = with_warmup(shop, tmp_path / "shop", {"1": warmed, "2": warmed})
    write_serving_config(base, tmp_path / "serving")
    text = (tmp_path / "serving" / "batching.config").read_text()
    assert list(parse(text, "BatchingParameters").allowed_batch_sizes) == [1, 8, 32]
    assert "Only single requests were warmed up" in text


def test_another_name_and_place_go_everywhere(shop, tmp_path):
    write_serving_config(shop, tmp_path / "files", name="My_Shop.v2", mount="/srv/models")
    texts = contents(tmp_path / "files")
    (model,) = parse(texts["models.config"], "ModelServerConfig").model_config_list.config
    assert (model.name, model.base_path) == ("My_Shop.v2", "/srv/models/shop")
    for client in ("client_rest.py", "client.sh", "client.mjs"):
        assert "/v1/models/My_Shop.v2/labels/stable:predict" in texts[f"clients/{client}"]
    deployment = yaml.safe_load(texts["kubernetes/deployment.yaml"])
    assert deployment["metadata"]["name"] == "serving-my-shop-v2"
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/v1/models/My_Shop.v2/labels/stable/metadata"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["models"] == "/srv/models"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stable": 3}, "`stable` must be a published version, one of 1, 2. Received: stable=3"),
        ({"canary": 7}, "`canary` must be a published version, one of 1, 2. Received: canary=7"),
        ({"canary": 2}, "`canary` must be another version than `stable`. Received: canary=2, stable=2"),
        ({"name": "a/b"}, "`name` must be of letters, digits, `_`, `.` and `-` alone. Received: name='a/b'"),
        ({"mount": "models"}, "`mount` must be an absolute path of plain characters. Received: mount='models'"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_writes_nothing(shop, tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        write_serving_config(shop, tmp_path / "serving", **options)
    assert not list(tmp_path.iterdir())


def test_a_base_path_without_a_version_or_with_one_of_somebody_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`model_base_path` must hold a published version"):
        write_serving_config(tmp_path / "nowhere", tmp_path / "serving")
    (tmp_path / "other" / "1").mkdir(parents=True)
    with pytest.raises(ValueError, match="every version must be an export of tfmetarec"):
        write_serving_config(tmp_path / "other", tmp_path / "serving")


def test_writing_again_replaces_its_own_files_and_touches_no_other(shop, folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "tls").mkdir()
    (folder / "tls" / "server.key").write_text("secret")
    assert 'key: "canary"' in (folder / "models.config").read_text()
    write_serving_config(shop, folder, stable=2)
    assert 'key: "canary"' not in (folder / "models.config").read_text()
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "tls" / "server.key").read_text() == "secret"
    assert [path.name for path in folder.parent.iterdir()] == ["serving"]


def test_a_file_of_somebody_else_is_not_replaced_and_then_nothing_is(shop, folder):
    (folder / "docker-compose.yaml").write_text("services: {}\n")
    before = contents(folder)
    with pytest.raises(ValueError, match=r"`folder` has a docker-compose\.yaml that this did not write; move it away"):
        write_serving_config(shop, folder, stable=2)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["serving"]


def test_a_folder_that_is_a_file_is_refused(shop, tmp_path):
    (tmp_path / "serving").write_text("")
    with pytest.raises(ValueError, match="`folder` must be a folder"):
        write_serving_config(shop, tmp_path / "serving")


# -- every file parses -------------------------------------------------------------------------------------


def test_the_servers_own_reader_reads_the_files_alike(folder):
    readers = {
        "batching.config": (config.read_batching, "BatchingParameters"),
        "monitoring.config": (config.read_monitoring, "MonitoringConfig"),
        "ssl.config.example": (config.read_ssl, "SSLConfig"),
        "models.config": (config.read_models, "ModelServerConfig"),
    }
    for file, (read, message) in readers.items():
        ours = parse((folder / file).read_text(), message)
        assert ours.SerializeToString(deterministic=True)
        assert read(str(folder / file)).SerializeToString(deterministic=True) == ours.SerializeToString(
            deterministic=True
        )
    assert config.read_monitoring(str(folder / "monitoring.config")).prometheus_config.path == (
        "/monitoring/prometheus/metrics"
    )


def test_the_servers_in_compose_and_kubernetes_are_started_with_flags_that_exist(folder):
    compose = yaml.safe_load((folder / "docker-compose.yaml").read_text())
    started = [compose["services"]["serving"]["command"]]
    for file in ("deployment.yaml", "canary.yaml"):
        *_, pods = yaml.safe_load_all((folder / "kubernetes" / file).read_text())
        (container,) = pods["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ["tensorflow_model_server"]
        started.append(container["args"])
    for command in started:
        parsed = flags.parse(command)
        assert (parsed.port, parsed.rest_api_port, parsed.enable_batching) == (8500, 8501, True)
        assert parsed.allow_version_labels_for_unavailable_models
        assert parsed.model_config_file_poll_wait_seconds == 10


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_every_manifest_keeps_to_the_schemas_of_kubernetes(folder, version):
    import kubernetes_validate

    kinds = []
    for path in sorted((folder / "kubernetes").iterdir()):
        for manifest in yaml.safe_load_all(path.read_text()):
            kubernetes_validate.validate(manifest, version, strict=True)
            kinds.append(manifest["kind"])
    assert sorted(kinds) == [
        *("ConfigMap", "ConfigMap", "Deployment", "Deployment", "HorizontalPodAutoscaler"),
        *("PersistentVolumeClaim", "Service", "Service"),
    ]


def test_what_manifests_name_exists_in_the_others(folder):
    manifests = [m for path in (folder / "kubernetes").iterdir() for m in yaml.safe_load_all(path.read_text())]
    named = {(m["kind"], m["metadata"]["name"]): m for m in manifests}
    assert len(named) == len(manifests)
    pods = [m["spec"]["template"] for m in manifests if m["kind"] == "Deployment"]
    for deployment in (m for m in manifests if m["kind"] == "Deployment"):
        assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
        assert ("ConfigMap", volumes["config"]["configMap"]["name"]) in named
        assert ("PersistentVolumeClaim", volumes["models"]["persistentVolumeClaim"]["claimName"]) in named
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"grpc": 8500, "rest": 8501}
        assert container["livenessProbe"]["tcpSocket"]["port"] in ports
        for service in (m for m in manifests if m["kind"] == "Service"):
            assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports.keys()
    target = next(m for m in manifests if m["kind"] == "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert "replicas" not in named[target["kind"], target["name"]]["spec"]


def test_clients_are_python_javascript_and_shell(folder):
    for file in ("client_rest.py", "client_grpc.py"):
        compile((folder / "clients" / file).read_text(), file, "exec")
        assert "tfmetarec." not in (folder / "clients" / file).read_text()
    commands = {"sh": ["sh", "-n", "make_ssl_config.sh"], "node": ["node", "--check", "clients/client.mjs"]}
    for program, command in commands.items():
        if shutil.which(program):
            assert subprocess.run(command, cwd=folder).returncode == 0


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "models.config",
            "versions: 2\n",
            "",
            "models.config must give labels only to the versions listed for shop",
        ),
        ("models.config", '"/models/', '"models/', "models.config must have an absolute base_path for shop"),
        ("models.config", '"tensorflow"', '"tensorrt"', 'models.config must say `model_platform: "tensorflow"`'),
        ("models.config", "name:", "nam:", "models.config must be the text of a ModelServerConfig: "),
        (
            "batching.config",
            "sizes: 32",
            "sizes: 16",
            "end allowed_batch_sizes with max_batch_size. Received: [1, 8, 16]",
        ),
        ("batching.config", "sizes: 8", "sizes: 40", "must have ascending allowed_batch_sizes. Received: [1, 40, 32]"),
        ("monitoring.config", "true", "false", "monitoring.config must set prometheus_config with `enable: true`"),
        ("monitoring.config", "metrics", "page", "must have a job with the `metrics_path` of monitoring.config"),
        ("ssl.config.example", "client_verify", "verify", "ssl.config.example must be the text of a SSLConfig"),
        ("docker-compose.yaml", "serving:2.21.0", "serving", "must name a version of the image of serving"),
        (
            "docker-compose.yaml",
            "./prometheus",
            "./prom",
            "docker-compose.yaml mounts ./prom in prometheus, which does",
        ),
        (
            "docker-compose.yaml",
            "services:",
            "service:",
            "docker-compose.yaml has not the form that its reader expects",
        ),
        ("docker-compose.yaml", "services:", "services: [", "docker-compose.yaml must be YAML: "),
        ("kubernetes/deployment.yaml", "metadata:", "meta:", "kubernetes/deployment.yaml has not the form"),
        (
            "kubernetes/configmap.yaml",
            "value: 1 }",
            "value: 2 }",
            "must hold the same models.config as the file of that",
        ),
        (
            "kubernetes/canary.yaml",
            "value: 2 }",
            "value: 1 }",
            "kubernetes/canary.yaml, models.config must give labels",
        ),
        (
            "grafana/dashboards/tensorflow-serving.json",
            '"panels"',
            '"panel"',
            "has not the form that its reader expects",
        ),
    ],
)
def test_an_edit_that_breaks_a_file_is_named(folder, file, old, new, message):
    check_serving_config(folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=re.escape(message)):
        check_serving_config(folder)


def test_a_missing_file_is_named(folder):
    (folder / "batching.config").unlink()
    with pytest.raises(ValueError, match=r"batching\.config cannot be read: No such file or directory\."):
        check_serving_config(folder)


# -- what it does on a server ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(files):
    """The shop on the local server, with the files' own batching and monitoring."""
    batching = BatchingOptions.from_proto(config.read_batching(str(files / "batching.config")))
    # Long enough for requests of a test to meet.
    batching = replace(batching, batch_timeout_micros=300_000)
    metrics = config.read_monitoring(str(files / "monitoring.config")).prometheus_config.path
    with serve(files, batching=batching, metrics_path=metrics, warmup_iterations=1) as running:
        yield running


@pytest.fixture(scope="module")
def expected(server, shops):
    """Items and scores for the first three items of the catalogue with the best rating, and nothing known else."""
    ids = [str(item) for item in shops["explicit"][1].item_ids[1:4]]
    support = {"support": [ids], "support_labels": [[5.0] * 3], "support_length": [3]}
    nan = float("nan")
    user = {
        "user_age": [nan],
        "user_bio": [""],
        "user_city": [""],
        "user_hobbies": [[""]],
        "user_hobbies_length": [0],
        "user_taste": [[nan] * 3],
    }
    outputs = ask(server, "shop", "adapt_and_recommend", support | user)
    assert len(outputs["items"][0]) == 4
    assert not set(outputs["items"][0]) & set(ids)
    return outputs["items"][0], outputs["scores"][0]


def run(command, folder):
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=PLAIN, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.serving
@pytest.mark.parametrize("client", ["client_rest.py", "client_grpc.py", "client.mjs"])
def test_a_client_example_recommends_what_the_model_does(server, files, expected, client):
    program = {"py": sys.executable, "mjs": shutil.which("node")}[client.split(".")[1]]
    if program is None:
        pytest.skip("node is not on PATH")
    port = server.port if "grpc" in client else server.rest_api_port
    lines = run([program, client, f"127.0.0.1:{port}"], files / "clients").splitlines()
    items, scores = zip(*(line.split("\t") for line in lines), strict=True)
    assert list(items) == expected[0]
    np.testing.assert_allclose([float(score) for score in scores], expected[1], atol=1e-4)


@pytest.mark.serving
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on PATH")
def test_the_example_with_curl_recommends_what_the_model_does(server, files, expected):
    outputs = json.loads(run(["./client.sh", f"127.0.0.1:{server.rest_api_port}"], files / "clients"))["outputs"]
    assert outputs["items"][0] == expected[0]
    np.testing.assert_allclose(outputs["scores"][0], expected[1], rtol=1e-5)


@pytest.mark.serving
@pytest.mark.skipif(shutil.which("node") is None, reason="node is not on PATH")
def test_the_javascript_example_reads_what_is_not_json(server, files, tmp_path):
    """Where every item is in the support none is left, and its score is -Infinity."""
    text = (files / "clients" / "client.mjs").read_text()
    ids = [f"artículo-{number:02d}" for number in range(12)]
    inputs = f'"support": {json.dumps([ids], ensure_ascii=False)}'
    text, count = re.subn(r'"support": \[\[.*\]\]', inputs, text)
    text = text.replace("[[5.0, 5.0, 5.0]]", str([[5.0] * 12])).replace(
        '"support_length": [3]', '"support_length": [12]'
    )
    assert count == 1
    (tmp_path / "client.mjs").write_text(text)
    printed = run(["node", "client.mjs", f"127.0.0.1:{server.rest_api_port}"], tmp_path)
    assert [line.split("\t")[1] for line in printed.splitlines()] == ["none left"] * 4


@pytest.mark.serving
def test_an_example_says_what_the_server_refused(server, files, tmp_path):
    text = (files / "clients" / "client_rest.py").read_text()
    (tmp_path / "client.py").write_text(text.replace('"support_length": [3],', ""))
    ran = subprocess.run(
        [sys.executable, "client.py", f"127.0.0.1:{server.rest_api_port}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert "400: " in ran.stderr
    assert "support_length" in ran.stderr


@pytest.mark.serving
def test_requests_of_different_widths_share_a_batch_and_get_the_answers_they_get_alone(server, shops):
    """The narrow one is padded with its own first item; its length says so, and its scores are cut by the client."""
    ids = [str(item) for item in shops["explicit"][1].item_ids[1:]]
    user = {"user_age": [30.0], "user_bio": ["likes chess"], "user_city": ["Ulm"], "user_taste": [[0.1, 0.2, 0.3]]}

    def request(support, candidates, hobbies):
        labels = [float(1 + place % 5) for place in range(support)]
        return {
            "support": [ids[:support]],
            "support_labels": [labels],
            "support_length": [support],
            "candidates": [ids[:candidates]],
            "user_hobbies": [hobbies],
            "user_hobbies_length": [len(hobbies)],
            **user,
        }

    requests = [request(2, 3, ["chess"]), request(7, 5, ["boats", "gardens", "chess"])]
    alone = [ask(server, "shop", "adapt_and_score", inputs)[0] for inputs in requests]
    assert [len(scores) for scores in alone] == [3, 5]
    together = [None, None]
    meet = threading.Barrier(2)

    def send(place):
        meet.wait()
        together[place] = ask(server, "shop", "adapt_and_score", requests[place])[0]

    threads = [threading.Thread(target=send, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(scores) for scores in together] == [5, 5]  # They did meet: the answer to three candidates is padded.
    np.testing.assert_allclose(together[0][:3], alone[0], rtol=1e-5)
    np.testing.assert_allclose(together[1], alone[1], rtol=1e-5)


SERIES = re.compile(r"^([a-zA-Z_:]+)\{(.*)\} \S+$", re.M)


@pytest.mark.serving
def test_every_metric_and_label_of_the_dashboard_is_on_the_servers_page(server, files, expected):
    status, page = get(server, "/monitoring/prometheus/metrics")
    assert status == 200
    labels: dict[str, set[str]] = {}
    for name, text in SERIES.findall(page):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', text))
    dashboard = json.loads((files / "grafana" / "dashboards" / "tensorflow-serving.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [v["definition"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    used = {metric for query in queries for metric in re.findall(r":tensorflow:[a-z_:]+", query)}
    assert used == {
        ":tensorflow:serving:request_count",
        ":tensorflow:serving:request_latency_bucket",
        ":tensorflow:serving:runtime_latency_bucket",
        ":tensorflow:serving:model_warmup_latency_sum",
        ":tensorflow:serving:model_warmup_latency_count",
        ":tensorflow:cc:saved_model:load_attempt_count",
    }
    assert used <= labels.keys()
    for query in queries:
        (metrics,) = {frozenset(labels[metric]) for metric in re.findall(r":tensorflow:[a-z_:]+", query)}
        wanted = re.findall(r"(\w+)(?:=~|!~|!=|=)\"", query) + re.findall(r", (\w+)\)$", query)
        for by in re.findall(r"by \(([^)]*)\)", query):
            wanted += by.split(", ")
        assert set(wanted) <= metrics, query
        assert set(wanted), query
    assert f'model_path="{files.parent}/models/shop/1"' in page


@pytest.mark.serving
def test_a_pod_is_ready_while_its_stable_version_answers_which_the_status_page_does_not_say(shop, tmp_path):
    shutil.copytree(shop / "1", tmp_path / "models" / "shop" / "1")
    write_serving_config(tmp_path / "models" / "shop", tmp_path, mount=str(tmp_path / "models"))
    pod = yaml.safe_load((tmp_path / "kubernetes" / "deployment.yaml").read_text())["spec"]["template"]["spec"]
    ready = pod["containers"][0]["readinessProbe"]["httpGet"]["path"]
    with serve(tmp_path, file_system_poll_wait_s=0.05) as running:
        assert get(running, ready)[0] == 200
        shutil.rmtree(tmp_path / "models" / "shop" / "1")
        wait_for(lambda: get(running, ready)[0] == 404)
        status, page = get(running, "/v1/models/shop")
        assert status == 200
        assert json.loads(page)["model_version_status"][0]["state"] in ("UNLOADING", "END")


@pytest.mark.serving
def test_a_version_is_promoted_in_two_steps_and_not_in_one(shop, tmp_path):
    def write(**labels):
        write_serving_config(shop, tmp_path / "files", mount=str(shop.parent), **labels)

    write(stable=1)
    with serve(tmp_path / "files", model_config_file_poll_wait_s=0.05, file_system_poll_wait_s=0.05) as running:
        assert (version_called(running, "stable"), version_called(running, "canary")) == (1, None)
        write(stable=1, canary=2)
        wait_for(lambda: version_called(running, "canary") == 2)
        assert version_called(running, "stable") == 1
        write(stable=2)
        wait_for(lambda: version_called(running, "stable") == 2)
        wait_for(lambda: version_called(running, "canary") is None)
        at_once = parse((tmp_path / "files" / "models.config").read_text(), "ModelServerConfig")
        (model,) = at_once.model_config_list.config
        model.model_version_policy.specific.versions[:] = [1]
        model.version_labels["stable"] = 1
        with pytest.raises(StatusError, match="assign label to version 1 of model shop, which is not currently"):
            running.store.reload(at_once)
        assert version_called(running, "stable") == 2


@pytest.fixture(scope="module")
def tls(files, tmp_path_factory):
    """The folder `tls` as the script makes it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not on PATH, to make a certificate")
    copied = tmp_path_factory.mktemp("tls") / "serving"
    shutil.copytree(files, copied)
    run(["./make_ssl_config.sh"], copied)
    return copied / "tls"


def test_the_script_makes_a_key_for_nobody_else_and_keeps_one_that_is_there(tls):
    assert {path.name for path in tls.iterdir()} == {".gitignore", "server.crt", "server.key", "ssl.config"}
    assert all((tls / file).stat().st_mode & 0o077 == 0 for file in ("server.key", "ssl.config"))
    assert (tls / ".gitignore").read_text() == "*\n"
    check_serving_config(tls.parent)
    made = (tls / "server.key").read_text(), (tls / "ssl.config").read_text()
    assert parse(made[1], "SSLConfig").server_key == made[0]
    run(["./make_ssl_config.sh", "example.org"], tls.parent)
    assert ((tls / "server.key").read_text(), (tls / "ssl.config").read_text()) == made


@pytest.mark.serving
def test_a_server_speaks_tls_with_what_the_script_made(files, tls):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "shop"
    with serve(files, ssl_config_file=tls / "ssl.config", rest_api_port=None) as running:
        certificate = grpc.ssl_channel_credentials((tls / "server.crt").read_bytes())
        with grpc.secure_channel(f"localhost:{running.port}", certificate) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            assert len(stub.GetModelStatus(request, timeout=10).model_version_status) == 2
        with grpc.insecure_channel(f"localhost:{running.port}") as channel, pytest.raises(grpc.RpcError):
            model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=10)


@pytest.mark.serving
@pytest.mark.slow
def test_the_grpc_example_speaks_tls_if_given_the_certificate(files, tls, expected):
    with serve(files, ssl_config_file=tls / "ssl.config") as running:
        command = [sys.executable, "client_grpc.py", f"127.0.0.1:{running.port}"]
        lines = run([*command, str(tls / "server.crt")], files / "clients").splitlines()
        assert [line.split("\t")[0] for line in lines] == expected[0]
        plain = subprocess.run(command, cwd=files / "clients", capture_output=True, text=True, env=PLAIN)
        assert plain.returncode == 1
        assert "UNAVAILABLE" in plain.stderr
