//! What lies in deploy/ agrees with the program: metrics that the dashboard shows, ports, paths, options, names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn yaml(name: &str) -> Value {
    serde_saphyr::from_str(&read(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Every file below `dir`, by its path from deploy/.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_string()),
        }
    }
    found
}

/// The names in `text` that begin like a metric's.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|w| w.starts_with("qlora_") && *w != "qlora_engine").map(str::to_string).collect()
}

/// As src/serve/metrics.rs registers them: counters gain `_total`, histograms `_bucket` and more.
fn exported() -> BTreeSet<String> {
    let code = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/serve/metrics.rs")).unwrap();
    let strings = code.split('"').skip(1).step_by(2);
    let name = |s: &&str| !s.is_empty() && s.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let ends = ["", "_total", "_bucket", "_count", "_sum"];
    strings.filter(name).flat_map(|s| ends.map(|end| format!("qlora_{s}{end}"))).collect()
}

#[test]
fn the_dashboard_shows_what_is_exported() {
    let text = read("grafana/dashboards/qlora-engine.json");
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    let shown = metrics(&text);
    let unknown: Vec<_> = shown.difference(&exported()).cloned().collect();
    assert!(unknown.is_empty(), "the server has no {unknown:?}");
    // And the other way: what is worth counting is worth a look.
    for name in [
        "qlora_requests_total",
        "qlora_queue_depth",
        "qlora_batch_size",
        "qlora_cache_pages_used",
        "qlora_time_to_first_token_seconds_bucket",
        "qlora_time_per_output_token_seconds_bucket",
        "qlora_tokens_in_total",
        "qlora_tokens_out_total",
        "qlora_adapters_loaded",
    ] {
        assert!(shown.contains(name), "{name} is not shown");
    }
    let mut ids: Vec<&Value> = panels.iter().map(|p| &p["id"]).collect();
    ids.dedup();
    assert_eq!(ids.len(), panels.len());
    // The data source is the one that is provisioned.
    let source = &yaml("grafana/provisioning/datasources/prometheus.yaml")["datasources"][0];
    for panel in panels {
        assert_eq!(panel["datasource"]["uid"], source["uid"], "{panel}");
        assert!(panel["targets"].as_array().unwrap().iter().all(|t| t["datasource"]["uid"] == source["uid"]));
    }
}

#[test]
fn every_file_can_be_read() {
    let all = files(&root());
    for name in all.iter().filter(|n| n.ends_with(".yaml") || n.ends_with(".yml")) {
        assert!(yaml(name).is_object(), "{name}");
    }
    for name in all.iter().filter(|n| n.ends_with(".json")) {
        assert!(serde_json::from_str::<Value>(&read(name)).unwrap().is_object(), "{name}");
    }
    let readme = read("README.md");
    for name in all.iter().filter(|n| !n.contains('/') && *n != "README.md") {
        assert!(
            readme.contains(name.as_str()) || name.ends_with("ignore") || name == "api.yaml",
            "{name} is not named in README.md"
        );
    }
    // What the autoscaler's rule in README.md asks for is exported, and what the autoscaler asks for is in the rule.
    let hpa = yaml("kubernetes/hpa.yaml");
    let metric = hpa["spec"]["metrics"][0]["pods"]["metric"]["name"].as_str().unwrap();
    assert!(exported().contains(metric) && readme.contains(&format!("name: {{as: {metric}}}")), "{metric}");
}

#[test]
fn the_image_starts_what_there_is() {
    let docker = read("Dockerfile");
    let line = |start: &str| {
        docker.lines().filter_map(|l| l.strip_prefix(start)).next_back().unwrap_or_else(|| panic!("no {start}"))
    };
    assert_eq!(line("EXPOSE "), "8000");
    assert_eq!(line("USER "), "nonroot");
    assert!(line("ENV ").starts_with("API_HOST=0.0.0.0 API_PORT=8000 "));
    assert_eq!(line("CMD "), "[\"api\", \"/etc/qlora-engine/api.yaml\"]");
    assert!(docker.contains("CMD [\"/usr/local/bin/qlora-engine\", \"health\", \"http://127.0.0.1:8000/health\"]"));
    // The compiler that Cargo.toml asks for.
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let wanted = manifest.lines().find_map(|l| l.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    assert!(docker.contains(&format!("FROM rust:{wanted}-")), "another compiler than {wanted}");
    // Everything that the build reads is let through.
    let ignored = read("Dockerfile.dockerignore");
    for part in [
        "Cargo.toml",
        "Cargo.lock",
        "Makefile",
        "build.rs",
        "src",
        "kernels",
        "benches",
        "examples",
        "tests",
        "assets/fonts",
    ] {
        assert!(ignored.lines().any(|l| l == format!("!{part}")), "{part}");
    }
}

#[test]
fn the_cluster_s_parts_fit_together() {
    let deployment = yaml("kubernetes/deployment.yaml");
    let pod = &deployment["spec"]["template"];
    let container = &pod["spec"]["containers"][0];
    for (probe, path) in [("livenessProbe", "/health"), ("readinessProbe", "/ready"), ("startupProbe", "/health")] {
        let get = &container[probe]["httpGet"];
        assert_eq!((get["path"].as_str(), get["port"].as_str()), (Some(path), Some("http")), "{probe}");
    }
    assert_eq!(
        (container["ports"][0]["name"].as_str(), &container["ports"][0]["containerPort"]),
        (Some("http"), &8000.into())
    );
    assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], 1);
    let context = &container["securityContext"];
    assert_eq!(
        (&context["readOnlyRootFilesystem"], &context["allowPrivilegeEscalation"]),
        (&true.into(), &false.into())
    );
    assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);

    // What is finished on a stop is finished before the cluster kills.
    let args: Vec<&str> = container["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    let value = |name: &str| args.iter().find_map(|a| a.strip_prefix(name)?.strip_prefix('=')).unwrap();
    let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace > value("--shutdown-timeout").parse().unwrap());
    let compose = yaml("compose.yaml");
    assert_eq!(compose["services"]["engine"]["stop_grace_period"], "45s");

    // Names that one file gives and another uses.
    let labels = &pod["metadata"]["labels"];
    assert_eq!(&deployment["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&yaml("kubernetes/service.yaml")["spec"]["selector"], labels);
    let target = &yaml("kubernetes/hpa.yaml")["spec"]["scaleTargetRef"];
    assert_eq!((&target["kind"], &target["name"]), (&deployment["kind"], &deployment["metadata"]["name"]));
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let volume = |name: &str| volumes.iter().find(|v| v["name"] == name).unwrap();
    assert_eq!(volume("config")["configMap"]["name"], yaml("kubernetes/configmap.yaml")["metadata"]["name"]);
    assert_eq!(volume("keys")["secret"]["secretName"], yaml("kubernetes/secret.yaml")["metadata"]["name"]);
    assert_eq!(
        volume("adapters")["persistentVolumeClaim"]["claimName"],
        yaml("kubernetes/volume.yaml")["metadata"]["name"]
    );
    for mount in container["volumeMounts"].as_array().unwrap() {
        volume(mount["name"].as_str().unwrap());
    }
    let served: Value =
        serde_saphyr::from_str(yaml("kubernetes/configmap.yaml")["data"]["api.yaml"].as_str().unwrap()).unwrap();
    assert!(served["model_name_or_path"].is_string());
    assert!(yaml("api.yaml")["model_name_or_path"].is_string());
}

#[test]
fn the_ways_in_lead_to_the_server() {
    let nginx = read("nginx.conf");
    assert!(
        nginx.contains("server engine:8000") && nginx.contains("least_conn;") && nginx.contains("proxy_buffering off;")
    );
    let compose = yaml("compose.yaml");
    assert!(compose["services"]["engine"].is_object(), "the service that nginx and Prometheus look for");
    // Whoever publishes a port does so on this machine alone.
    for (name, service) in compose["services"].as_object().unwrap() {
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port}");
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let from = volume.as_str().unwrap().split(':').next().unwrap();
            assert!(!from.starts_with("./") || root().join(from).exists(), "{name}: {from}");
        }
    }
    let scrape = &yaml("prometheus/prometheus.yml")["scrape_configs"][0];
    assert_eq!(scrape["metrics_path"], "/metrics");
    assert_eq!(
        (&scrape["dns_sd_configs"][0]["names"][0], &scrape["dns_sd_configs"][0]["port"]),
        (&"engine".into(), &8000.into())
    );
    let unit = read("systemd/qlora-engine.service");
    for line in ["DynamicUser=yes", "ProtectSystem=strict", "NoNewPrivileges=yes", "TimeoutStopSec=45"] {
        assert!(unit.lines().any(|l| l == line), "{line}");
    }
    let start = unit.lines().find_map(|l| l.strip_prefix("ExecStart=")).unwrap();
    assert!(start.starts_with("/usr/local/bin/qlora-engine api /etc/qlora-engine/api.yaml "));
}
