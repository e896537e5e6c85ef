//! `postern certs root`: a root that is replaced, or that is kept off line.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use postern_certs::authority::{MAX_INTERMEDIATE_DAYS, sign_intermediate};
use postern_certs::{Authority, PathPrefix};
use zeroize::Zeroizing;

use super::{ConfigArgument, write_new};
use crate::cli::say;
use crate::tls;

#[derive(Debug, Subcommand)]
pub(crate) enum RootCommand {
    /// Begin the switch to a new root: trust both, then issue from the new one, then drop the old one.
    Switch {
        #[command(flatten)]
        config: ConfigArgument,
    },
    /// On a machine that is kept off line: make a root.
    Create {
        /// The trust domain, such as example.org.
        #[arg(long)]
        domain: String,
        /// A folder for its key; it is made.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
    /// On that machine: sign the request of a branch.
    Sign {
        /// The folder of the root.
        #[arg(long, value_name = "FOLDER")]
        root: PathBuf,
        /// What the branch's gateway wrote: intermediate.csr.pem.
        #[arg(long, value_name = "FILE")]
        csr: PathBuf,
        /// Below which paths the branch may name workloads, such as /branch-17; absent: everywhere.
        #[arg(long, default_value = "")]
        prefix: PathPrefix,
        /// How long it lives. Half of that is the time to bring the next one over.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=MAX_INTERMEDIATE_DAYS.into()))]
        days: u16,
        /// Where to write the certificate.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// On the gateway's machine: put in place what the off-line machine signed.
    Install {
        #[command(flatten)]
        config: ConfigArgument,
        /// What `root sign` wrote.
        #[arg(long, value_name = "FILE")]
        certificate: PathBuf,
        /// Every root that peers have to trust (PEM): what `root create` wrote.
        #[arg(long, value_name = "FILE")]
        roots: PathBuf,
    },
}

/// The root without its key.
const CERTIFICATE_FILE: &str = "root-certificate.pem";

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

pub(super) fn run(command: RootCommand) -> anyhow::Result<()> {
    let now = time::OffsetDateTime::now_utc();
    match command {
        RootCommand::Switch { config } => {
            let (_, authority) = config.authority()?;
            authority.begin_root_switch()?;
            say(
                "a new root is trusted beside the old one from now on; `postern certs status` shows how far the switch is",
            );
        }
        RootCommand::Create { domain, out } => {
            let root = postern_certs::authority::create_root(&out, &domain, now)?;
            let path = out.join(CERTIFICATE_FILE);
            write_new(&path, postern_certs::pem::certificates(&[root]).as_bytes())
                .with_context(|| format!("writing {}", path.display()))?;
            say(&format!(
                "{}: a root for {domain}. Keep root.pem off line, and keep a copy; {CERTIFICATE_FILE} goes to the branches",
                out.display()
            ));
        }
        RootCommand::Sign { root, csr, prefix, days, out } => {
            let root = Zeroizing::new(read(&root.join("root.pem"))?);
            let signed = sign_intermediate(&root, &read(&csr)?, &prefix, days, now)?;
            write_new(&out, signed.as_bytes()).with_context(|| format!("writing {}", out.display()))?;
            say(&format!("{}: bring it to the gateway and run `postern certs root install`", out.display()));
        }
        RootCommand::Install { config, certificate, roots } => {
            let config = config.load()?;
            let options = tls::authority_options(&config);
            Authority::install(&config.authority_dir(), options, &read(&certificate)?, &read(&roots)?)?;
            say("the intermediate is in place");
        }
    }
    Ok(())
}
