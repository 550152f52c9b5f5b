/** Files that images name, beyond what open.test.ts has: data files, `info` and `map`, changes while a file is opened, names. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { protocolOf } from '../../../src/block/gate';
import { BlockError } from '../../../src/errors';
import { formatByName } from '../../../src/formats/registry';
import { FileStorage } from '../../../src/storage/file';
import { KIB, MIB } from '../../../src/units';
import { createImage, open, temporaryDirectory } from '../../helpers/images';
import { runCommands } from '../../mount/command-batch';

interface Place {
  images: string;
  secret: string;
}

/** A directory of images, and a file outside that none of them may show. */
function place(t: ExecutionContext): Place {
  const top = fs.realpathSync(temporaryDirectory(t));
  const images = path.join(top, 'images');
  fs.mkdirSync(images);
  const secret = path.join(top, 'secret');
  fs.writeFileSync(secret, Buffer.alloc(64 * KIB, 's'));
  return { images, secret };
}

/** qcow2 with external data, made by writing the file's name over another of the same length. */
function withDataFile(file: string, name: string): void {
  const before = 'x'.repeat(name.length);
  const storage = FileStorage.create(file);
  const data = FileStorage.create(path.join(path.dirname(file), before));
  try {
    formatByName('qcow2').create?.(storage, { size: MIB, dataFile: { name: before, raw: true } }, data);
  } finally {
    storage.close();
    data.close();
  }
  fs.writeFileSync(file, Buffer.from(fs.readFileSync(file, 'latin1').replace(before, name), 'latin1'));
}

test('a data file outside the directory would show a secret as a disk: it needs --backing any, by whatever name', (t) => {
  const { images, secret } = place(t);
  const file = path.join(images, 'a.qcow2');
  fs.symlinkSync('../secret', path.join(images, 'link'));
  for (const name of [secret, '../secret', 'link', `file:${secret}`]) {
    withDataFile(file, name);
    for (const readOnly of [true, false]) {
      const error = t.throws(() => open(file, { backing: 'directory', readOnly }), { instanceOf: BlockError }, name);
      t.is(error?.code, 'DENIED', name);
      t.regex(error?.message ?? '', /^Cannot open the raw data file ".*": it is outside .*--backing any$/);
    }
    open(file, { backing: 'any', readOnly: true }).close();
  }
  for (const name of ['json:{}', 'nbd:x:1', 'http://x/y']) {
    withDataFile(file, name);
    t.is(t.throws(() => open(file), { instanceOf: BlockError })?.code, 'UNSUPPORTED_FEATURE', name);
  }
  t.deepEqual(fs.readFileSync(secret), Buffer.alloc(64 * KIB, 's'));
});

test('info and map open no raw file outside the directory either, without --backing any', async (t) => {
  const { images, secret } = place(t);
  for (const [name, format] of [
    ['said.qed', 'raw'],
    ['probed.qed', undefined],
  ] as const) {
    const backing = { name: secret, ...(format === undefined ? {} : { format }) };
    createImage(path.join(images, name), { format: 'qed', size: MIB, backing });
  }
  const denied = [
    ['info', '--backing-chain', 'said.qed'],
    ['info', '--backing-chain', 'probed.qed'],
    ['map', 'said.qed'],
    ['map', 'probed.qed'],
  ];
  for (const { code, stdout, stderr } of await runCommands(images, denied)) {
    t.deepEqual([code, stdout], [1, '']);
    t.regex(stderr, /^imagefs: Cannot open the raw backing file [^\n]*--backing any\n$/);
  }
  const allowed = [
    ...denied.map((words) => [...words, '--backing', 'any']),
    ['info', 'said.qed'],
    ['check', 'said.qed'],
  ];
  for (const { code, stderr } of await runCommands(images, allowed)) t.deepEqual([code, stderr], [0, '']);
  const [wrong] = await runCommands(images, [['map', '--backing', 'some', 'said.qed']]);
  t.is(wrong?.code, 1);
});

test('a name that changes its meaning after the gate has judged it opens what was judged', (t) => {
  const { images, secret } = place(t);
  const inside = path.join(images, 'inside');
  fs.writeFileSync(inside, 'harmless');
  const storage = FileStorage.open(inside, {
    readOnly: true,
    admit: () => {
      fs.renameSync(inside, `${inside}-moved`);
      fs.symlinkSync(secret, inside);
    },
  });
  t.teardown(() => storage.close());
  const bytes = Buffer.alloc(8);
  storage.read(0, bytes, 0, 8);
  t.is(bytes.toString(), 'harmless');
});

test('what the gate refuses is not opened at all, and leaves no descriptor', (t) => {
  const { secret } = place(t);
  const before = fs.readdirSync('/proc/self/fd').length;
  const refusal = new BlockError('DENIED', 'no');
  const error = t.throws(() =>
    FileStorage.open(secret, {
      readOnly: true,
      admit: ({ fd }) => {
        // It knows the file, and cannot read it.
        t.throws(() => fs.readSync(fd, Buffer.alloc(1), 0, 1, 0), { code: 'EBADF' });
        throw refusal;
      },
    }),
  );
  t.is(error, refusal);
  t.is(fs.readdirSync('/proc/self/fd').length, before);
});

test('protocolOf(): a colon before the first slash, whatever stands before it, as in QEMU', (t) => {
  const names = { 'json:{"a":1}': 'json:', 'nbd://h/x': 'nbd:', 'a_b:c': 'a_b:', '1:x': '1:', ':x': ':' };
  for (const [name, protocol] of Object.entries(names)) t.is(protocolOf(name), protocol, name);
  for (const name of ['a', './a:b', '/x:y', 'dir/a:b', '']) t.is(protocolOf(name), undefined, name);
});
