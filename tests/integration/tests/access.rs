//! Users, open files and extended attributes at a cluster of separate processes, over the real host
//! library, and over a crash of the metadata server.

use gannet_client::{
    AttributeChanges, Identity, IdentityId, OpenAccess, Ownership, RequestError, SetTime, XattrMode,
};
use gannet_integration::cluster::{Cluster, ClusterOptions};
use gannet_integration::load::open;
use gannet_integration::{one_at_a_time, pattern};

const ALICE: IdentityId = IdentityId(1);
const BOB: IdentityId = IdentityId(2);
const ACCESS: i32 = 13;
const NOT_OWNER: i32 = 1;

fn errno<T: std::fmt::Debug>(result: Result<T, RequestError>) -> i32 {
    result.expect_err("this is refused").errno()
}

#[test]
fn users_are_kept_apart_and_open_files_outlive_their_names() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::new(ClusterOptions::default());
    let mut session = open(&cluster.address());
    let user = |uid, groups: &[u32]| Identity { uid, gid: uid, groups: groups.to_vec() };
    session.set_identity(ALICE, &user(1000, &[50])).expect("a number in bounds");
    session.set_identity(BOB, &user(1001, &[50])).expect("a number in bounds");
    let any = Ownership { mode: 0o1777, uid: 0, gid: 0 };
    session.mkdir("/shared", any).expect("the superuser may");

    session.act_as(ALICE);
    assert_eq!(errno(session.mkdir("/mine", any)), ACCESS);
    let private = Ownership { mode: 0o600, ..Ownership::default() };
    let made = session.create("/shared/f", private, true).expect("everybody may");
    assert_eq!((made.uid.get(), made.gid.get()), (1000, 1000));
    let file = made.handle;
    let mut data = vec![0; 300_000];
    pattern::fill(&mut data, 1, 0);
    session.write_at(file, 0, &data).expect("it is hers");
    session.set_xattr(file, "user.note", b"hers", XattrMode::Create).expect("it is hers");

    session.act_as(BOB);
    let mut read = vec![0; data.len()];
    assert_eq!(errno(session.read_at(file, 0, &mut read)), ACCESS);
    assert_eq!(errno(session.write_at(file, 0, b"x")), ACCESS);
    assert_eq!(errno(session.truncate(file, 0)), ACCESS);
    assert_eq!(errno(session.xattr_value(file, "user.note")), ACCESS);
    assert_eq!(errno(session.unlink("/shared/f")), NOT_OWNER);
    assert_eq!(errno(session.open_file("/shared/f", OpenAccess::Read)), ACCESS);
    let now = Some(SetTime::Now);
    let touch = AttributeChanges { atime: now, mtime: now, ..AttributeChanges::default() };
    assert_eq!(errno(session.set_attributes(file, touch)), ACCESS);

    session.act_as(ALICE);
    let (_, opened) = session.open_file("/shared/f", OpenAccess::ReadWrite).expect("it is hers");
    session.unlink("/shared/f").expect("it is hers");
    cluster.kill_metaserver();
    cluster.start_metaserver();
    assert_eq!(session.stat_handle(file).expect("it is open").links.get(), 0);
    assert_eq!(session.read_at(file, 0, &mut read).expect("it is open"), data.len());
    assert_eq!(read, data);
    session.append(file, &[7; 5000]).expect("it is open");
    assert_eq!(session.xattr_value(file, "user.note").expect("it is there"), b"hers");
    assert_eq!(session.xattr_names(file).expect("it is there"), [b"user.note"]);
    session.close_file(file, opened).expect("it was open");
    session.act_as(IdentityId::OWN);
    assert!(session.readdir_all("/shared").expect("it is there").is_empty());
}
