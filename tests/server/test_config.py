import pytest
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from tfmetarec.server import config, flags
from tfmetarec.server.status import StatusError


def models(text):
    return text_format.Parse(f"model_config_list {{ {text} }}", ModelServerConfig()).model_config_list


ONE = 'config { name: "m" base_path: "/m" model_platform: "tensorflow" }'


def test_a_batching_file_is_read(tmp_path):
    path = tmp_path / "batching.config"
    path.write_text("max_batch_size { value: 32 } allowed_batch_sizes: [8, 32] pad_variable_length_inputs: true")
    parameters = config.read_batching(str(path))
    assert parameters.max_batch_size.value == 32
    assert list(parameters.allowed_batch_sizes) == [8, 32]
    assert parameters.pad_variable_length_inputs
    assert not parameters.HasField("num_batch_threads")


def test_a_file_that_is_missing_or_wrong_is_named(tmp_path):
    with pytest.raises(StatusError, match="`monitoring_config_file` must name a readable file"):
        config.read_monitoring(str(tmp_path / "none"))
    wrong = tmp_path / "models.config"
    wrong.write_text("model_config_list { nonsense: 1 }")
    with pytest.raises(StatusError, match=r"Invalid protobuf file: '.*models\.config' .*nonsense"):
        config.read_models(str(wrong))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ONE + ONE, "Illegal to list model m multiple times in config list"),
        (
            'config { name: "m" base_path: "rel" model_platform: "tensorflow" }',
            "Expected model m to have an absolute path or URI; got base_path()=rel",
        ),
    ],
)
def test_a_list_that_breaks_a_rule_is_refused(text, message):
    with pytest.raises(StatusError) as caught:
        config.check_models(models(text))
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('config { name: "m" base_path: "/m" }', "Illegal setting neither"),
        ('config { name: "m" model_type: TENSORFLOW model_platform: "tensorflow" }', "Illegal setting both"),
        ('config { name: "m" model_platform: "caffe" }', "Model m requests unsupported platform caffe"),
    ],
)
def test_only_the_tensorflow_platform_is_supported(text, message):
    with pytest.raises(StatusError, match=message):
        config.check_supported(models(text))


def test_the_old_way_of_naming_the_platform_works():
    config.check_supported(models('config { name: "m" base_path: "/m" model_type: TENSORFLOW }'))


def test_a_model_cannot_change_its_platform():
    with pytest.raises(StatusError, match="platform was tensorflow and new platform requested is other"):
        config.check_platforms(models(ONE), models(ONE.replace("tensorflow", "other")))


def test_a_session_file_is_read(tmp_path):
    path = tmp_path / "session.config"
    path.write_text("inter_op_parallelism_threads: 3 allow_soft_placement: true")
    assert config.read_session(str(path)).inter_op_parallelism_threads == 3


def test_both_ways_of_naming_the_models_may_be_given_as_the_docker_image_does():
    parsed = flags.parse(["--model_name=m", "--model_base_path=/models/m", "--model_config_file=/models.config"])
    assert parsed.model_config_file == "/models.config"


def test_a_socket_file_will_do_without_a_port():
    parsed = flags.parse(["--model_base_path=/m", "--port=0", "--grpc_socket_path=/run/m.sock"])
    assert (parsed.port, parsed.rest_api_port, parsed.grpc_socket_path) == (0, 0, "/run/m.sock")


def test_flags_are_taken_in_both_spellings():
    parsed = flags.parse(["--model_base_path", "/m", "--port=1", "--rest_api_port=2", "--enable_batching=false"])
    assert (parsed.model_base_path, parsed.port, parsed.rest_api_port) == ("/m", 1, 2)
    assert parsed.enable_batching is False
    assert flags.parse(["--model_base_path=/m", "--enable_batching"]).enable_batching is True


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "`--model_base_path` or `--model_config_file` must be given. Received: neither"),
        (["--model_base_path=/m", "--port=1", "--rest_api_port=1"], "must differ"),
        (["--model_base_path=/m", "--port=0"], "at least one must not be 0"),
        (["--model_base_path=/m", "--port=70000"], "`--port` must be from 0 to 65535. Received: 70000"),
        (["--model_base_path=/m", "--batching_parameters_file=/b"], "needs `--enable_batching`"),
        (
            ["--model_base_path=/m", "--enable_per_model_batching_parameters"],
            "`--enable_per_model_batching_parameters` needs `--enable_batching`, which is not set.",
        ),
        (
            [
                "--model_base_path=/m",
                "--tensorflow_session_parallelism=2",
                "--tensorflow_intra_op_parallelism=2",
            ],
            "`--tensorflow_session_parallelism` stands for `--tensorflow_intra_op_parallelism` and",
        ),
        (["--model_base_path=/m", "--enable_batching=maybe"], "must be true or false. Received: maybe"),
        (
            ["--model_base_path=/m", "--no_such_flag=1"],
            "Wrong flags: unrecognized arguments: --no_such_flag=1",
        ),
        (["--model_base_path=/m", "--model_bas=/n"], "unrecognized arguments"),
        (
            ["--model_base_path=/m", "--grpc_max_threads=0"],
            "`--grpc_max_threads` must be at least 1. Received: 0",
        ),
    ],
)
def test_wrong_flags_are_explained(argv, message):
    with pytest.raises(StatusError) as caught:
        flags.parse(argv)
    assert message in caught.value.message
