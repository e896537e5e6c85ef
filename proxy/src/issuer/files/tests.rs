use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use postern_tests::pki::gateway::GatewayLeaf;
use postern_tests::pki::{Authority, Leaf};

use super::*;

const ID: &str = "spiffe://branch.test/gateway";
/// Two polls and a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// Long enough for a change to be seen that must not be.
const A_WHILE: Duration = Duration::from_millis(2500);

struct Folder {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Folder {
    fn new() -> Self {
        let folder = Self { dir: tempfile::tempdir().unwrap(), authority: Authority::new("root").unwrap() };
        folder.write("ca", folder.authority.pem());
        folder.write_leaf(&folder.leaf());
        folder
    }

    fn leaf(&self) -> Leaf {
        self.leaf_like(GatewayLeaf::of(ID))
    }

    fn leaf_like(&self, asked: GatewayLeaf<'_>) -> Leaf {
        self.authority.gateway(asked).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
        if name.starts_with("key") {
            self.set_mode(name, 0o600);
        }
    }

    fn write_leaf(&self, leaf: &Leaf) {
        self.write("key", &leaf.key_pem);
        self.write("cert", &leaf.cert_pem);
    }

    fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    fn paths(&self) -> Paths {
        Paths { cert: self.path("cert"), key: self.path("key"), ca: self.path("ca"), crl: None }
    }

    fn files(&self) -> Files {
        Files::new(self.paths())
    }
}

async fn soon(files: &mut Files) -> Result<Material, IssuerError> {
    tokio::time::timeout(SOON, files.next()).await.expect("nothing was seen")
}

async fn nothing_for_a_while(files: &mut Files) {
    assert!(tokio::time::timeout(A_WHILE, files.next()).await.is_err(), "nothing changed");
}

async fn fault(folder: &Folder) -> String {
    soon(&mut folder.files()).await.unwrap_err().to_string()
}

fn certificate(leaf: &Leaf) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(leaf.cert_pem.as_bytes()).unwrap()
}

#[tokio::test]
async fn what_is_there_is_handed_over_once() {
    let folder = Folder::new();
    let mut files = folder.files();
    let material = soon(&mut files).await.unwrap();
    assert_eq!(material.leaf.id.to_string(), ID);
    assert_eq!((material.roots.len(), material.crls.len()), (1, 0));
    material.check(&ID.parse().unwrap()).unwrap();
    assert!(material.check(&"spiffe://branch.test/other".parse().unwrap()).is_err());
    folder.write("cert", fs::read(folder.path("cert")).unwrap());
    nothing_for_a_while(&mut files).await;
}

#[tokio::test]
async fn a_pair_that_is_renamed_into_place_is_picked_up() {
    let folder = Folder::new();
    let mut files = folder.files();
    soon(&mut files).await.unwrap();
    let fresh = folder.leaf();
    folder.write("cert.new", &fresh.cert_pem);
    folder.write("key.new", &fresh.key_pem);
    fs::rename(folder.path("key.new"), folder.path("key")).unwrap();
    fs::rename(folder.path("cert.new"), folder.path("cert")).unwrap();
    assert_eq!(soon(&mut files).await.unwrap().leaf.chain, [certificate(&fresh)]);
}

/// Kubernetes: `key` → `..data/key`, and `..data` → a folder of one generation; only `..data` is replaced.
#[tokio::test]
async fn a_folder_that_kubernetes_swaps_is_picked_up() {
    let folder = Folder::new();
    let generation = |name: &str, leaf: &Leaf, ca: &str| {
        fs::create_dir(folder.path(name)).unwrap();
        folder.write(&format!("{name}/tls.crt"), &leaf.cert_pem);
        folder.write(&format!("{name}/tls.key"), &leaf.key_pem);
        folder.set_mode(&format!("{name}/tls.key"), 0o400);
        folder.write(&format!("{name}/ca.crt"), ca);
    };
    let (first, second, next) = (folder.leaf(), folder.leaf(), Authority::new("next root").unwrap());
    generation("..2026_11_24_08_00", &first, folder.authority.pem());
    symlink("..2026_11_24_08_00", folder.path("..data")).unwrap();
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        symlink(format!("..data/{name}"), folder.path(name)).unwrap();
    }
    let (cert, key, ca) = (folder.path("tls.crt"), folder.path("tls.key"), folder.path("ca.crt"));
    let mut files = Files::new(Paths { cert, key, ca, crl: None });
    assert_eq!(soon(&mut files).await.unwrap().leaf.chain, [certificate(&first)]);

    generation("..2026_11_24_09_00", &second, &format!("{}{}", folder.authority.pem(), next.pem()));
    symlink("..2026_11_24_09_00", folder.path("..data_tmp")).unwrap();
    fs::rename(folder.path("..data_tmp"), folder.path("..data")).unwrap();
    let material = soon(&mut files).await.unwrap();
    assert_eq!(material.leaf.chain, [certificate(&second)]);
    assert_eq!(material.roots.len(), 2);
}

/// The caller is told once, keeps what it has, and gets the pair when it is whole.
#[tokio::test]
async fn a_torn_pair_is_a_fault_until_it_is_whole() {
    let folder = Folder::new();
    let mut files = folder.files();
    soon(&mut files).await.unwrap();
    let fresh = folder.leaf();
    folder.write("cert", &fresh.cert_pem);
    let told = soon(&mut files).await.unwrap_err().to_string();
    assert!(told.contains("`trust.files.key`") && told.contains("is not the key of the certificate"), "{told}");
    nothing_for_a_while(&mut files).await;
    folder.write("key", &fresh.key_pem);
    assert_eq!(soon(&mut files).await.unwrap().leaf.chain, [certificate(&fresh)]);
}

#[tokio::test]
async fn a_fault_that_lasts_a_moment_is_not_told() {
    let folder = Folder::new();
    let mut files = folder.files();
    soon(&mut files).await.unwrap();
    let fresh = folder.leaf();
    folder.write("cert", &fresh.cert_pem);
    while files.suspected.is_none() {
        let looked = tokio::time::timeout(POLL / 4, files.next()).await;
        assert!(looked.is_err(), "told at first sight");
    }
    folder.write("key", &fresh.key_pem);
    assert_eq!(soon(&mut files).await.unwrap().leaf.chain, [certificate(&fresh)]);
}

/// Somebody put the old pair back: the caller, who was told of a fault, learns that it is over.
#[tokio::test]
async fn a_fault_that_is_over_is_news() {
    let folder = Folder::new();
    let mut files = folder.files();
    soon(&mut files).await.unwrap();
    let old = fs::read(folder.path("cert")).unwrap();
    folder.write("cert", "garbage");
    assert!(soon(&mut files).await.is_err());
    folder.write("cert", old);
    soon(&mut files).await.unwrap();
}

#[tokio::test]
async fn faults_name_the_key_of_the_configuration() {
    let secret = "MC4CAQAwBQYDK2VwBCIEIJtJx";
    let leaf_for = |from_s, until_s| {
        move |folder: &Folder| {
            folder.write_leaf(&folder.leaf_like(GatewayLeaf { from_s, until_s, ..GatewayLeaf::of(ID) }));
        }
    };
    let two_ids = |folder: &Folder| folder.write_leaf(&folder.authority.client(&[ID, "spiffe://b/x"]).unwrap());
    let folder_for_file = |folder: &Folder| {
        fs::remove_file(folder.path("ca")).unwrap();
        fs::create_dir(folder.path("ca")).unwrap();
    };
    let writes = |name: &'static str, text: String| move |folder: &Folder| folder.write(name, &text);
    let half = format!("-----BEGIN PRIVATE KEY-----\n{secret}");
    let garbage = format!("-----BEGIN PRIVATE KEY-----\n{secret}A==\n-----END PRIVATE KEY-----\n");
    let locked = format!("-----BEGIN ENCRYPTED PRIVATE KEY-----\n{secret}A==\n-----END ENCRYPTED PRIVATE KEY-----\n");
    type Spoil = Box<dyn Fn(&Folder)>;
    let cases: Vec<(Spoil, &str, &str)> = vec![
        (Box::new(|folder| fs::remove_file(folder.path("cert")).unwrap()), "cert", "cannot be opened"),
        (Box::new(writes("cert", String::new())), "cert", "holds no certificate"),
        (Box::new(writes("ca", "nothing here".into())), "ca", "holds no certificate"),
        (Box::new(folder_for_file), "ca", "is not a file"),
        (Box::new(writes("key", half)), "key", "ends in the middle"),
        (Box::new(writes("key", garbage)), "key", "cannot be used by TLS"),
        (Box::new(writes("key", locked)), "key", "holds no unencrypted private key"),
        (Box::new(writes("key", format!("-----BEGIN {secret}"))), "key", "not well-formed"),
        (Box::new(writes("key", "\n".repeat(MAX_KEY_BYTES + 1))), "key", "longer than"),
        (Box::new(leaf_for(-7200, -60)), "cert", "expired at"),
        (Box::new(leaf_for(3600, 7200)), "cert", "valid only from"),
        (Box::new(two_ids), "cert", "more than one URI"),
    ];
    for (spoil, key, what) in cases {
        let folder = Folder::new();
        spoil(&folder);
        let told = fault(&folder).await;
        assert!(told.contains(&format!("`trust.files.{key}`")) && told.contains(what), "{what}: {told}");
        assert!(!told.contains(secret), "{told}");
    }
}

/// Opening a pipe that nobody writes to would wait for ever.
#[tokio::test]
async fn a_pipe_is_not_waited_for() {
    let folder = Folder::new();
    fs::remove_file(folder.path("key")).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, folder.path("key"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(fault(&folder).await.contains("is not a file"));
}

#[tokio::test]
async fn a_key_that_others_can_read_is_refused_and_taken_when_it_is_closed() {
    let folder = Folder::new();
    let mut files = folder.files();
    for mode in [0o644, 0o604, 0o660, 0o602] {
        folder.set_mode("key", mode);
        let told = soon(&mut files).await.unwrap_err().to_string();
        assert!(told.contains("`trust.files.key`") && told.contains(&format!("{mode:04o}")), "{told}");
    }
    folder.set_mode("key", 0o440);
    soon(&mut files).await.expect("our own group may read, as with fsGroup");
}

#[test]
fn a_group_may_read_if_it_is_ours() {
    for (mode, own, is_exposed) in [
        (0o600, false, false),
        (0o400, false, false),
        (0o440, true, false),
        (0o640, true, false),
        (0o640, false, true),
        (0o660, true, true),
        (0o644, true, true),
        (0o601, true, true),
    ] {
        assert_eq!(exposed(mode, own), is_exposed, "{mode:04o} {own}");
    }
}

/// The key inside a PKCS #8 key, as older tools write it.
fn bare(pkcs8: &str, kind: &str, algorithm: &[u8], header: usize) -> String {
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from_pem_slice(pkcs8.as_bytes()).unwrap();
    let der = key.secret_pkcs8_der();
    let at = der.windows(algorithm.len()).position(|window| window == algorithm).unwrap();
    let base64 = data_encoding::BASE64.encode(&der[at + algorithm.len() + header..]);
    format!("-----BEGIN {kind}-----\n{base64}\n-----END {kind}-----\n")
}

#[tokio::test]
async fn keys_of_three_kinds_are_read() {
    let folder = Folder::new();
    let mut ec = folder.leaf();
    ec.key_pem = bare(&ec.key_pem, "EC PRIVATE KEY", b"\x2a\x86\x48\xce\x3d\x03\x01\x07", 2);
    folder.write_leaf(&ec);
    let material = soon(&mut folder.files()).await.unwrap();
    assert!(matches!(material.leaf.key, PrivateKeyDer::Sec1(_)));

    let mut rsa = folder.leaf_like(GatewayLeaf { rsa: true, ..GatewayLeaf::of(ID) });
    folder.write_leaf(&rsa);
    soon(&mut folder.files()).await.expect("RSA in PKCS #8");
    rsa.key_pem = bare(&rsa.key_pem, "RSA PRIVATE KEY", b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00", 4);
    folder.write_leaf(&rsa);
    let material = soon(&mut folder.files()).await.unwrap();
    assert!(matches!(material.leaf.key, PrivateKeyDer::Pkcs1(_)));
    material.check(&ID.parse().unwrap()).unwrap();
}

/// SPIFFE Filesystem Delivery, section 2.1: the key, then the chain, in one file.
#[tokio::test]
async fn one_file_may_hold_both() {
    let folder = Folder::new();
    let leaf = folder.leaf();
    folder.write("key", format!("{}{}", leaf.key_pem, leaf.cert_pem));
    let paths = Paths { cert: folder.path("key"), ..folder.paths() };
    assert_eq!(soon(&mut Files::new(paths)).await.unwrap().leaf.chain, [certificate(&leaf)]);
}

#[tokio::test]
async fn revocation_lists_are_read_and_their_change_is_seen() {
    let folder = Folder::new();
    let crl = folder.path("crl");
    let mut files = Files::new(Paths { crl: Some(crl.clone()), ..folder.paths() });
    let missing = soon(&mut files).await.unwrap_err().to_string();
    assert!(missing.contains("`trust.files.crl`"), "a list that is configured has to be there: {missing}");
    let first = folder.authority.revocation_list().unwrap();
    fs::write(&crl, &first).unwrap();
    assert_eq!(soon(&mut files).await.unwrap().crls.len(), 1);
    fs::write(&crl, format!("{first}{}", folder.authority.revocation_list().unwrap())).unwrap();
    assert_eq!(soon(&mut files).await.unwrap().crls.len(), 2);
    fs::write(&crl, folder.authority.pem()).unwrap();
    assert!(soon(&mut files).await.unwrap_err().to_string().contains("holds no revocation list"));
    let root = CertificateDer::from_pem_slice(folder.authority.pem().as_bytes()).unwrap();
    let base64 = data_encoding::BASE64.encode(&root);
    fs::write(&crl, format!("-----BEGIN X509 CRL-----\n{base64}\n-----END X509 CRL-----\n")).unwrap();
    assert!(soon(&mut files).await.unwrap_err().to_string().contains("not a certificate revocation list"));
}
