//! Sets everything up, and takes it down again.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::UP_WITHIN;
use super::client::{Answer, Client, ask_with_key, plain};
use crate::audit::Records;
use crate::cli::{pull, say};
use crate::{config, tls};

/// The model on this machine.
const MODEL: &str = "smollm2-135m-instruct";
/// The trust domain of the demo.
const DOMAIN: &str = "demo.postern.example";
/// Who `postern connect` asks as.
const WORKSTATION: &str = "workstation";
/// For a process to end by itself.
const END_WITHIN: Duration = Duration::from_secs(45);
/// For the folder to be free.
const REMOVED_WITHIN: Duration = Duration::from_secs(5);

/// Everything that runs.
pub(super) struct Stage {
    pub(super) folder: PathBuf,
    pub(super) gateway: SocketAddr,
    pub(super) admin: SocketAddr,
    /// Of `postern connect`.
    pub(super) connect: SocketAddr,
    control: SocketAddr,
    cloud: Running,
    postern: Running,
    connector: Running,
}

/// A process. Dropping it kills it.
struct Running {
    child: Child,
    // Read no further, but kept: a closed pipe would end whoever writes into it.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Stage {
    pub(super) async fn set(busy_cloud: Option<&Path>, quiet: bool) -> anyhow::Result<Self> {
        let say = |line: &str| if quiet { tracing::info!("{line}") } else { say(line) };
        say("1/5  the language model for this machine");
        let model = tokio::task::spawn_blocking(|| pull(MODEL)).await??;
        say(&format!("     {}", model.display()));

        let folder = std::env::temp_dir().join(format!("postern-demo-{}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let set = Self::set_in(&folder, busy_cloud, &say).await;
        if set.is_err() {
            // What had started was killed with its handle, and its children end with it.
            remove(&folder).await;
        }
        set
    }

    async fn set_in(folder: &Path, busy_cloud: Option<&Path>, say: &impl Fn(&str)) -> anyhow::Result<Self> {
        say(&format!("2/5  a busy cloud, in a process of its own (scratch folder {})", folder.display()));
        let program = match busy_cloud {
            Some(path) => path.to_owned(),
            None => std::env::current_exe()?.with_file_name("busy-cloud"),
        };
        ensure!(program.is_file(), "there is no {}; `make build` builds it", program.display());
        let mut cloud = Command::new(program);
        cloud.args(["--parent-death", "--listen", "127.0.0.1:0", "--out"]).arg(folder);
        let (cloud, line) = Running::start(cloud).await.context("the busy cloud did not come up")?;
        let ready: Value = serde_json::from_str(&line)?;
        let text = |field: &str| ready.get(field).and_then(Value::as_str).context("the busy cloud's first line");
        let control = text("control")?.trim_start_matches("http://").parse()?;

        say("3/5  the gateway, with an authority of its own");
        let path = folder.join("postern.yaml");
        std::fs::write(&path, configuration(text("base_url")?, text("ca")?))?;
        let mut postern = this_program()?;
        postern.arg("run").arg("--config").arg(&path).env("DEMO_CLOUD_KEY", "demo-key");
        let came_up = Running::start(postern).await;
        let (postern, line) = came_up.context("the gateway did not come up; its messages are above")?;
        let (gateway, admin) = (address(&line, "gateway=")?, address(&line, "admin=")?);
        issue(folder, "clerk")?;
        say(&format!("     https://{gateway}"));

        say("4/5  `postern connect`, as a workstation has it");
        issue(folder, WORKSTATION)?;
        let mut connector = this_program()?;
        connector.args(["connect", "--listen", "127.0.0.1:0", "--gateway", &gateway.to_string(), "--dir"]);
        connector.arg(folder.join(WORKSTATION));
        let came_up = Running::start(connector).await;
        let (connector, line) = came_up.context("`postern connect` did not come up; its messages are above")?;
        let connect = address(&line, "url=http://")?;
        say(&format!("     http://{connect}/v1"));

        let folder = folder.to_owned();
        let mut stage = Self { folder, gateway, admin, connect, control, cloud, postern, connector };
        say("5/5  the engine loads its model");
        let ready = stage.wait_for_engine().await;
        if ready.is_err() {
            stage.end().await;
        }
        ready.map(|()| stage)
    }

    /// A client with the certificate of `spiffe://…/NAME`.
    pub(super) fn client(&self, name: &str) -> anyhow::Result<Client> {
        Client::new(self.gateway, &self.folder.join(name))
    }

    /// The file with the key for `postern connect`.
    pub(super) fn connect_token(&self) -> PathBuf {
        self.folder.join(WORKSTATION).join("token")
    }

    /// Asks the model called `model` through `postern connect`.
    pub(super) async fn ask_through_connector(&self, model: &str, prompt: &str) -> anyhow::Result<Answer> {
        let key = std::fs::read_to_string(self.connect_token())?;
        ask_with_key(self.connect, key.trim(), model, prompt).await
    }

    async fn wait_for_engine(&self) -> anyhow::Result<()> {
        let until = Instant::now() + UP_WITHIN;
        while Instant::now() < until {
            let (_, text) = plain(self.admin, "GET", "/readyz?verbose", "").await?;
            if text.contains("engine: ok") {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("the engine did not come up within {} s; its messages are above", UP_WITHIN.as_secs())
    }

    /// Tells the cloud how to behave.
    pub(super) async fn cloud_behaves(&self, switches: Value) -> anyhow::Result<()> {
        let (status, _) = plain(self.control, "PUT", "/switches", &switches.to_string()).await?;
        ensure!(status < 300, "the busy cloud refused its switches");
        Ok(())
    }

    /// What the cloud has seen.
    pub(super) async fn cloud_saw(&self) -> anyhow::Result<Value> {
        let (_, text) = plain(self.control, "GET", "/stats", "").await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// All records so far.
    pub(super) fn records(&self) -> anyhow::Result<Vec<Value>> {
        let records = Records::in_folder(&self.folder.join("state/audit"));
        let all = records.of_days(None, None)?;
        all.map(|record| Ok(serde_json::from_slice(&record?.bytes)?)).collect()
    }

    /// Ends everything and removes the folder.
    pub(super) async fn strike(&mut self) {
        self.end().await;
        remove(&self.folder).await;
    }

    async fn end(&mut self) {
        self.connector.stop().await;
        self.postern.stop().await;
        let _gone = self.cloud.child.kill().await;
    }
}

impl Running {
    /// Starts it, and waits for its first line.
    async fn start(mut command: Command) -> anyhow::Result<(Self, String)> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?).lines();
        let _shown = std::io::stdout().flush();
        let line = tokio::time::timeout(UP_WITHIN, output.next_line()).await??;
        Ok((Self { child, _output: output }, line.context("it ended before it was ready")?))
    }

    /// Asks it to end, and waits until it has.
    async fn stop(&mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _gone = kill_process(pid, Signal::TERM);
        }
        let _ended = tokio::time::timeout(END_WITHIN, self.child.wait()).await;
    }
}

/// Warnings of it are shown, since they say what is wrong.
fn this_program() -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env("POSTERN_LOG", std::env::var("POSTERN_LOG").unwrap_or_else(|_| "warn".into()));
    Ok(command)
}

/// What stands behind `name` in a ready line.
fn address(line: &str, name: &str) -> anyhow::Result<SocketAddr> {
    let word = line.split(' ').find_map(|word| word.strip_prefix(name)).context("the ready line")?;
    word.trim_end_matches("/v1").parse().context("the ready line")
}

/// The certificate of `spiffe://…/NAME`, into a folder of that name.
fn issue(folder: &Path, name: &str) -> anyhow::Result<()> {
    let config = config::load(&folder.join("postern.yaml"))?;
    let authority = tls::authority(&config)?;
    let id = format!("spiffe://{DOMAIN}/office/{name}").parse()?;
    let request = postern_certs::LeafRequest { id, role: postern_certs::Role::Workload };
    Ok(authority.issue(request)?.write(&folder.join(name), &authority.trust_bundle())?)
}

/// A process that is just ending may still write there, so it is tried for a while.
async fn remove(folder: &Path) {
    let until = Instant::now() + REMOVED_WITHIN;
    while let Err(error) = std::fs::remove_dir_all(folder) {
        if error.kind() == std::io::ErrorKind::NotFound {
            return;
        }
        if Instant::now() > until {
            return tracing::warn!(%error, folder = %folder.display(), "the scratch folder could not be removed");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Two things are not as in the mission, since the machine may be small and busy building something else. The latency goal
/// for the edge: the stock kernels need more than 150 ms for a first token, and a goal that is never met would show
/// nothing. And the policies' deadlines, which are 20 ms otherwise.
fn configuration(base_url: &str, ca: &str) -> String {
    format!(
        r#"listen: 127.0.0.1:0
admin: 127.0.0.1:0
state_dir: state
trust: {{domain: {DOMAIN}}}
identities:
  - {{match: "spiffe://{DOMAIN}/office/*", tenant: office}}
targets:
  - name: busy-cloud
    placement: cloud
    clearance: internal
    openai: {{base_url: "{base_url}", api_key: {{env: DEMO_CLOUD_KEY}}, ca: {ca}}}
    models: {{chat: big-model, assistant: big-model}}
placements:
  cloud: {{ttft: 500ms, cost: 1.0}}
  edge-first: {{ttft: 5s, cost: 1.8}}
  local: {{cost: 3.5}}
policies:
  - name: redact-pii
    component: builtin:redaction
    deadline: 1s
    config: {{kinds: [email, phone, id-card, bank-card, secret]}}
  - name: routes
    component: builtin:routing
    config: {{rules: [{{model: assistant, placement: edge-first}}]}}
    deadline: 1s
  - name: keep-answers
    component: builtin:caching
    deadline: 1s
cache: {{memory: 16MiB, ttl: 600s}}
engine: {{model: {MODEL}, models: [chat, assistant]}}
"#
    )
}

/// Switches of a cloud that answers well.
pub(super) fn well_behaved() -> Value {
    json!({"latency_ms": 80, "token_ms": 8, "chunk_chars": 3})
}
