from tfmetarec.server.prometheus import Metrics


def values(metrics, name):
    rows = (line.rsplit(" ", 1) for line in metrics.page().splitlines() if line.startswith(name))
    return {key.removeprefix(name): float(value) for key, value in rows}


def test_a_latency_falls_into_every_bucket_above_it():
    metrics = Metrics()
    metrics.observe_runtime("m", "Predict", 20e-6)  # 20 microseconds; the limits are 10, 18, 32.4, ...
    buckets = values(metrics, ':tensorflow:serving:runtime_latency_bucket{model_name="m",API="Predict",runtime="TF1",')
    assert list(buckets)[:3] == ['le="10"}', 'le="18"}', 'le="32.4"}']
    assert list(buckets.values()) == [0.0, 0.0] + [1.0] * 32
    assert list(buckets)[-1] == 'le="+Inf"}'


def test_examples_are_counted_by_request_and_in_all():
    metrics = Metrics()
    metrics.count_examples("m", 1)
    metrics.count_examples("m", 3)
    assert values(metrics, ":tensorflow:serving:request_example_count_total") == {'{model="m"}': 4.0}
    buckets = values(metrics, ':tensorflow:serving:request_example_counts_bucket{model="m",')
    # One example is not below the limit 1, so it is in the bucket that ends at 2.
    assert list(buckets.items())[:3] == [('le="1"}', 0.0), ('le="2"}', 1.0), ('le="4"}', 2.0)]
    assert list(buckets)[-2] == 'le="16384"}'
    assert values(metrics, ":tensorflow:serving:request_example_counts_sum") == {'{model="m"}': 4.0}


def test_loads_are_counted_under_tensorflows_own_names():
    metrics = Metrics()
    metrics.count_load("/m/1", True, 0.5)
    metrics.count_load("/m/1", False, 0.25)
    attempts = values(metrics, ":tensorflow:cc:saved_model:load_attempt_count")
    assert attempts == {'{model_path="/m/1",status="fail"}': 1.0, '{model_path="/m/1",status="success"}': 1.0}
    assert values(metrics, ":tensorflow:cc:saved_model:load_latency") == {'{model_path="/m/1"}': 750000.0}


def test_label_values_are_escaped():
    metrics = Metrics()
    metrics.count_request('a"b\\c', "OK")
    assert r'request_count{model_name="a\"b\\c",status="OK"} 1' in metrics.page()
