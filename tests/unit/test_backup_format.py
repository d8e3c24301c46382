"""The format of backups is the one that docs/design/backup-format.md specifies, today and tomorrow.

The decoder (`fix_backup_reader`) knows nothing of the library: it was written from that page alone.
The bytes below are of format 1; whatever later releases write, they have to read these.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import msgpack
import pytest
from fix_backup_reader import MIB, decode_items, decode_key, decode_manifest, decode_object
from hypothesis import given, settings
from hypothesis import strategies as st

from llmspell_dist.backup import items
from llmspell_dist.backup.compression import Compression
from llmspell_dist.backup.container import ObjectKind, seal, unseal
from llmspell_dist.backup.encryption import DataKey
from llmspell_dist.backup.keys import KeyStore
from llmspell_dist.backup.manifest import BackupType, Manifest, ShardCut, Stats
from llmspell_dist.backup.names import Layout
from llmspell_dist.backup.repository import Repository
from llmspell_dist.backup.targets.folder import FolderTarget
from llmspell_dist.records import Kind, StoredRecord, pack_record
from llmspell_dist.revision import Revision
from llmspell_dist.security.keyring import EnvironmentKeys

pytestmark = [pytest.mark.unit, pytest.mark.backup]

# --- and what the library writes ------------------------------------------------------------------

KEY = DataKey("0f1e2d3c4b5a69788796a5b4c3d2e1f0", bytes(range(32)))
SECRET = bytes(range(200, 232))
RECORD = pack_record(
    StoredRecord(
        Kind.VALUE, 0, 0, 1, Revision(1_700_000_000_000, 1), 1_600_000_000_000, 0, b"\xa1x"
    )
)
CONTENT = b"".join(
    (
        items.pack_scope(b"agent:alice"),
        items.pack_scope_record(b"what $$ holds"),
        items.pack_record(b"key", RECORD),
        items.pack_elements(4, [b"field", b"value", b"", b"x" * 300]),
        items.pack_continued(b"key"),
        items.pack_missing(),
        items.pack_entry(Revision(5, 6).packed, b"changes", b"", b"operation....."),
        items.pack_unresolved(Revision(7, 8), b"lost"),
        items.pack_extra(b"events", b"data"),
    )
)


@given(
    content=st.binary(max_size=300) | st.integers(0, 3 * MIB).map(bytes),
    algorithm=st.sampled_from(["none", "gzip:1", "zstd", "lz4"]),
    key=st.sampled_from([None, KEY]),
    kind=st.sampled_from(ObjectKind),
)
@settings(max_examples=60)
def test_what_is_written_is_what_the_page_says(
    content: bytes, algorithm: str, key: DataKey | None, kind: ObjectKind
) -> None:
    """Somebody who has only the page reads every object."""
    sealed = seal(kind, content, compression=Compression.parse(algorithm), key=key)
    assert decode_object(sealed.data, sealed.name, {KEY.id: KEY.secret}) == (kind, content)


def test_keys_are_what_the_page_says(tmp_path: Path) -> None:
    """From the wrapped key in the target and the secret in the environment."""
    text = f"v2:{base64.b64encode(SECRET).decode()}"
    target = FolderTarget(tmp_path)
    store = KeyStore(target, Layout("app"), EnvironmentKeys("K", environ={"K": text}))
    key = store.new()
    assert key is not None
    stored = target.get(f"app/keys/{key.id}/environment.v2.json")
    assert decode_key(stored, SECRET) == (key.id, key.secret)
    target.close()


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_backup_is_what_the_page_says(tmp_path: Path, encrypted: bool) -> None:
    """From the manifest to the contents of its objects, with nothing but the target and a key."""
    target = FolderTarget(tmp_path)
    provider = EnvironmentKeys("K", environ={"K": SECRET.hex()}) if encrypted else None
    repository = Repository(target, "app", keys=provider)
    stored = repository.begin()
    refs = [repository.store("records", CONTENT, "0", stored)]
    refs.append(repository.store("index", repository.pack_index({"inexact": []}), "", stored))
    manifest = Manifest(
        backup_id="20260131T120000Z-0a1b2c3d",
        type=BackupType.FULL,
        namespace="app",
        started="2026-01-31T12:00:00+00:00",
        created="2026-01-31T12:00:01.5+00:00",
        shards=(ShardCut("0", "", "5-6", "00" * 14),),
        objects=tuple(refs),
        tags={"why": "because ümlauts"},
        stats=Stats(seconds=1.5),
    )
    repository.publish(manifest, stored.key)

    keys = {}
    for info in target.list("app/keys/"):
        key_id, key = decode_key(target.get(info.name), SECRET)
        keys[key_id] = key
    raw = target.get("app/backups/20260131T120000Z-0a1b2c3d/manifest.json")
    key_of_index = next(one["key"] for one in json.loads(raw)["objects"] if one["kind"] == "index")
    assert (key_of_index in keys) is encrypted
    fields = decode_manifest(raw, keys.get(key_of_index))
    assert fields["shards"][0]["at"] == "5-6"
    read = {}
    for one in fields["objects"]:
        data = target.get(f"app/objects/{one['digest'][:2]}/{one['digest']}")
        assert len(data) == one["size"]
        kind, content = decode_object(data, one["digest"], keys)
        assert len(content) == one["plain_size"]
        assert kind == {"records": 1, "segment": 2, "index": 3, "extra": 4}[one["kind"]]
        read[one["kind"]] = content
    assert read["records"] == CONTENT
    assert msgpack.unpackb(read["index"])["format"] == 1
    target.close()


def test_items_are_what_the_page_says() -> None:
    """Every tag, every field, in order."""
    framed = b"".join(
        len(part).to_bytes(4, "big") + part for part in (b"field", b"value", b"", b"x" * 300)
    )
    assert list(decode_items(CONTENT)) == [
        ("S", [b"agent:alice"]),
        ("M", [b"what $$ holds"]),
        ("R", [b"key", RECORD]),
        ("E", [b"\4", b"\0\0\0\4", framed]),
        ("C", [b"key"]),
        ("X", []),
        ("L", [Revision(5, 6).packed, b"changes", b"", b"operation....."]),
        ("U", [Revision(7, 8).packed, b"lost"]),
        ("N", [b"events", b"data"]),
    ]


# --- format 1, for ever ---------------------------------------------------------------------------

GOLDEN: dict[str, tuple[str, str]] = {
    "none": (
        "a543577bb50100c03f5352e9903a8f49a96893f0bcd06566c21760ffe8e4b6f8",
        (
            "OjANZLrYaq0RaF20005zfB*sJQveHLXJu}5I$>;SV`WVM4R>f^bRZ-oAZTxFWOGsg0{{R37i(pC0T2NI0RfB8<"
            "!Ar^00032bcb$$0HJtA1ONa41ONa5MgRZ+1!iewY-9ic00nkoY;|P-"
            "0000000As`czAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetc"
            "zAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetcz"
            "AetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczA"
            "etczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAetczAe"
            "tczAetczAetczAetczAetczAetczAetczAetczAe200V1fd00#U000001poj51^@s62LJ#7000004r6FxZf9k4"
            "Z*XODVRUJ4ZZ0k^E-qC7000002LJ#72ml0ZZ*z1`0000600004Wp-t5baP~3bYWOEp)O#<R-&yZ-4jKnwww-"
            "JB?>e~A^|81Q)w0;m&O"
        ),
    ),
    "none encrypted": (
        "025937dcbe5e88882b203e045780b8dd907fedd260885b24a351a94d31a0f98d",
        (
            "OjANZLrYaq0RaF30005z4<0Q%OIm4ohnA(Z!_wjKWMyV&XlZI|Y;A6DaB*^Tbai%jczJqze0_d@fPsR8E_R`5#"
            "QN3n=&%00%VH{^twNk{YoiPa=l@p?2fzHjfB*sZ($Wb5b64?qJ3bB22$s7+8uu*f-"
            "1_7aPbf1xKJU|>fd2yBRhxdB4vD#4KFWE8eM1WhJS*O0(Mp-PoY0OaBS~Oij|KziPQ4&XZ=?c6Iu({uZO&W8WW"
            "<o>XkMr4!z$_MaP)n=lj|89D0xy|S>*0r=*=+?++rqRd?+(L7QIb2;?|0{otu(b&Z`xe+V+djpcpzlOL#X=+`l"
            "&8jz*JA>O%LT`vpD_AGg#fS!^t}3RPlg<~8J2ah9d>tdgx5ch~gY@(OpqRO4~yAd^DvPVaDaR&wfGSA`I%h@OM"
            "4WFuMGemk2pFz3}j%vSZD5vAqIQX`a6=N`P-"
            "CaH`$cYH?fYASBDu_qr>Pyn$5y+A;^pw$0$9W({f%H@YpgD?6K3#CL-@n3R&1#tdfQMIXKk!={tLM^G-"
            "5t;`0FzoM<xqI<<=;(#0H9m5TLcQd#b|FFR%%vF_H2SlUS}{0ZdQK`6Kr!L`R&^O504TLcBoj=njE1ev_dK9BB"
            "Wlr+!WU?<_`tL=6hKgUxrZ^fI}z}dOfS&s%UxD2fEm6Rh}uQ#V$lLJChQ)WAksVe(ipOy4VDBlg>z`67_=<;!Q"
            "+Utl)@~1y=ae$)$M*oK)n;X7`T?PSo+OJOZPw?F2fl?PT}PqeZ9ZRVA~17J>`h#vZz$<=LW9(-"
            "6q1x1YmPJV|NgJZ}25_S@!"
        ),
    ),
    "gzip": (
        "aa33c3927e3cf2d322db79945e188473c184d00133b31c3ec7b74b7977fb5111",
        (
            "OjANZLrYaq0RaI30005zfB*omABzY80000000RqV;7&|W%`34=%*jkn^=05K&qyp$P*G9H$j?bB4q{+tU|<l>P"
            "OW4VU}Ruq>^}cA11JDwm9*zIFf6QaWdZVln9&VLv!-RH=A?iaWr;bZsSIGis8cZthz8CK%)r2o@Bs%MD-"
            "g2*F*_tA8TgVj67$kii}MRoixNvR^YipTAQUVIQp3T(l9OLt;s@2nl3E6g*y5DLl0*P)r-"
            "DW10RR99IeZDAHrpG1YtRgn+B@o>0V`B<YUT4Rl3Ok9tz3Z"
        ),
    ),
    "gzip encrypted": (
        "80f2582a3efc865ee857420e3a7b0add59f6781f9cefe3fcf7ec705e65f97c1d",
        (
            "OjANZLrYaq0RaI40005z4<0Q%OIm4ohnA(Z!_wjKWMyV&XlZI|Y;A6DaB*^Tbai%jczJqze0_d@fPsR8oZ^+9?"
            "NJIA=)l@B13>zVecBz{dYoqCjHy93pEM!rfB*o$kr);fQf<&2QATqe7EBsxy&@x0BvTwT6bc@0eXc^qSDnALWg"
            "OEh!>ya`J@$|rK;&_GkZmF1wum!;p|omf@HAWyYc={5ko`}Tq}mN&m!`N~c9Q5AM8Yl?Q1XQB>N~N4jC<?~m7="
            "b|ILvY$2mAu5enovfa-tE(DpN9z`ceBiO@2!kLR;%~+)c7b3uUNe4*gpcG85D6orXi9g~;k&e6rgzICRj`FH{2"
            "3Z}r+|?J`8Sc1^Wkx%Og6fv`?6wop1NdkzbYVdX(fznva&FgSGNBI@`XF{)n"
        ),
    ),
    "zstd": (
        "d82db8c004747ec3b64b5067b82bc3d9a8088e9b34d549a88bf318696eb09953",
        (
            "OjANZLrYaq0RaL40005zfB*olD77#BVCDcN1ps1+A}oNZX$&)y8JLHtBakR|5VUdred*8=l-"
            "Atf$cPID3?O=l;#$a}#hUHp$P^m&fzj=>3n9YS){Ykf+>4?<tiyu~Ib}}d#?Sbd4H&AGlm{q){Do*bJ#C|g<uA"
            "xz|019&mT(g>^PgQ<P-"
            "LExtX7)*$_emkk1<WdL}d|>57vpA3PiV%K2`_`09qv<WdRrlYyi_ia8PinnOc>&mNO3U^WJTI&7Pv0nTeEH1;d"
            "Mru0Dg`S%V5nJ`A6}m>>"
        ),
    ),
    "zstd encrypted": (
        "92cac685a7f823d816ef58b291e910703e451f9f9e77ac64154c4ddea6b8ec7c",
        (
            "OjANZLrYaq0RaL50005z4<0Q%OIm4ohnA(Z!_wjKWMyV&XlZI|Y;A6DaB*^Tbai%jczJqze0_d@fPsR8uT7M5x"
            "##Mmu9Igwz>_f)RtgoQ5FbDXWK9Uk`(zcHfB*o#QgE%*=y5?-"
            "!${k&vuzL6QB82PYg`bT2+E4_*m)(MJEfunRCkB;r*az>g)h}`pLeVFv!h930~eWH&+D+~h@Chl77MbWk*2iZj"
            "LO#kKLjJYWBDKuiF^#04rU`i#neyJ{vuAow(nuRt$}#lj>yorBsmkw)3=;Wwum=zG3bpXJ@Q@Vc(V-"
            "2_MQ4~G(~w{WDNB>8$o29>^qUc-"
            "9T{@eS)eVq5*+bk2okm_cdIBQ}_S&!~pHw9_vo;AJ4)dB!T$#^><nI9?mJ|W48%((?I)pPOH2X!=3"
        ),
    ),
    "lz4": (
        "a497daee5e3df7e1307582769e52377567bfcefe9e0cc133f273ead37eaba0c1",
        (
            "OjANZLrYaq0RaO50005zfB*o^1R_lsXh7xx00000005k}0002+O;Z31VP|D-"
            "bUI;dX=7zg01bC&VRRrQBp_&SY-Dp%00RI302gazc>xds009Au&*f+U000010d$9MfB>O*MFao<00aO40Y(4-"
            "00m}gWo%>s000GcVQh6}04e}a00As`0RaCQfkOZTYh`&@OgjOQ1poj51^@s62Mz%61pojJV`yP+XJvD5aAk5~b"
            "ZKvHE&%`#RT}^SBmjd500eArb97EO0I&pQc4cmKb7Wz3VE_OC02XY|>$ss1Hvz9=9h9q_{<z8tfe0hk^I+Z7);"
            "6{(R{"
        ),
    ),
    "lz4 encrypted": (
        "e7a6a70b28c97ddee48ca2ca535aa7e4e82d0c69514e6472097395a2692afdac",
        (
            "OjANZLrYaq0RaO60005z4<0Q%OIm4ohnA(Z!_wjKWMyV&XlZI|Y;A6DaB*^Tbai%jczJqze0_d@fPsR8<viZeE"
            "y#0QDDs^Ks4;T7Fgbs{0E2@etaBzJCdF%AfB*p9Nw=VF(S*-iUokr7W1{>O;Uk}GhXYb2?Dmcq-zqC9da-"
            "1DL_R>)Hx(q7!XQ^eBi>FpLq7+#s5UvL8AB(5(SvM<%Etp)j{WTvrn`3uCr}*X{_~_z74W}H56IZjpy!%L!u=i"
            "BT`f>^wLr*_6t1vv`+vak7Nj%S_|}NG_K9fEm*%T#C;h8OuHpdsjIP^)6M&xyb%%;bzdBCFyM4kaE&>@P+ZhvO"
            "&t!*j0ar{DnC+^Z$e!Z&N1{0<#q7lmH)n(ZeDT1DI0RPb&lVW7(C6`i!7I$YyilmT5)LN^PEFu$1eeQD8SHPcf"
            "xsOlfXP`VaHg#)B>"
        ),
    ),
}
GOLDEN_KEY = """\
{
 "format": 1,
 "key": "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
 "provider": "environment",
 "version": "v1",
 "wrapped": "AaFQeO8zUnwB9J2oXW/JYmG2L1qcxcok48ENJrYNF34bMs9KOjAtG5HVs14fkul0L+p8dOwXU0/MUpLl1A==",
 "check": "0875502af9b2a1ad7cdae9c09de7a9d8"
}
"""


@pytest.mark.parametrize("name", GOLDEN)
def test_objects_of_format_1_are_read(name: str) -> None:
    """Whatever later releases write."""
    digest, text = GOLDEN[name]
    data = base64.b85decode(text)
    opened = unseal(data, name=name, digest=digest, kind=ObjectKind.RECORDS, keys=lambda _: KEY)
    assert opened == CONTENT
    assert decode_object(data, digest, {KEY.id: KEY.secret}) == (1, CONTENT)


def test_a_wrapped_key_of_format_1_is_read(tmp_path: Path) -> None:
    """And the key that it was wrapped by."""
    target = FolderTarget(tmp_path)
    target.put(f"app/keys/{KEY.id}/environment.v1.json", GOLDEN_KEY.encode())
    provider = EnvironmentKeys("K", environ={"K": SECRET.hex()})
    found = KeyStore(target, Layout("app"), provider).get(KEY.id)
    assert (found.id, found.secret) == (KEY.id, KEY.secret)
    target.close()


def test_an_object_without_compression_and_encryption_is_written_as_ever() -> None:
    """Byte by byte; the other algorithms' bytes are their libraries' choice."""
    sealed = seal(ObjectKind.RECORDS, CONTENT, compression=Compression.parse("none"), key=None)
    assert sealed.name == GOLDEN["none"][0]


def test_an_encrypted_object_is_written_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same salt."""
    monkeypatch.setattr("os.urandom", lambda size: bytes(range(100, 100 + size)))
    sealed = seal(ObjectKind.RECORDS, CONTENT, compression=Compression.parse("none"), key=KEY)
    assert sealed.name == GOLDEN["none encrypted"][0]
