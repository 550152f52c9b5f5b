/** Snapshots that we take and QEMU reads, and the other way round: the same bytes, the same list, and nothing that a check finds. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { ExecutionContext } from 'ava';
import { listSnapshots, openSnapshot } from '../../src/block/snapshots';
import { KIB, MIB } from '../../src/units';
import { checkFile, createImage, type ImageSpec, open } from '../helpers/images';
import { LONG, patternBytes, Random, seedOf } from '../helpers/random';
import { contentOf, firstDifference, type ModelSnapshot, SnapshotModel } from '../helpers/snapshot-model';
import { imagefs, make, oracleTest, qemuImg, run } from './qemu';

const SIZE = 3 * MIB + 512;
const FILE = 'disk.qcow2';

interface Layout {
  qemu: string;
  ours: Partial<ImageSpec>;
  backing?: boolean;
}

const LAYOUTS: Layout[] = [
  { qemu: 'cluster_size=64k', ours: {} },
  { qemu: 'cluster_size=512,refcount_bits=64', ours: { clusterSize: 512, refcountBits: 64 } },
  { qemu: 'cluster_size=4k,refcount_bits=4', ours: { clusterSize: 4 * KIB, refcountBits: 4 }, backing: true },
  { qemu: 'cluster_size=1k,compat=0.10', ours: { clusterSize: KIB, version: 2 }, backing: true },
  { qemu: 'cluster_size=16k,extended_l2=on', ours: { clusterSize: 16 * KIB, extendedL2: true }, backing: true },
];

const titleOf = ({ qemu, backing }: Layout) => `${qemu}${backing ? ', backing file' : ''}`;

function makeBase(directory: string, { backing }: Layout): { name: string; format: string } | undefined {
  if (!backing) return undefined;
  fs.writeFileSync(path.join(directory, 'base.raw'), patternBytes(0, 2 * MIB, 55));
  return { name: 'base.raw', format: 'raw' };
}

/** The disk, or a snapshot of it, as QEMU reads it. */
function theirs(directory: string, snapshot?: ModelSnapshot): Uint8Array {
  const words = snapshot === undefined ? [] : ['-l', `snapshot.id=${snapshot.id},snapshot.name=${snapshot.name}`];
  make(directory, 'convert', '-f', 'qcow2', '-O', 'raw', ...words, FILE, 'converted');
  const bytes = fs.readFileSync(path.join(directory, 'converted'));
  fs.rmSync(path.join(directory, 'converted'));
  return bytes;
}

function sound(t: ExecutionContext, directory: string, when: string): void {
  const { code, stdout, stderr } = qemuImg(directory, ['check', FILE]);
  t.is(code, 0, `${when}: ${stdout}${stderr}`);
  const { corruptions, checkErrors, leaks } = checkFile(path.join(directory, FILE));
  t.deepEqual([corruptions, checkErrors, leaks], [0, 0, 0], `${when}: our check`);
}

for (const [index, layout] of LAYOUTS.entries()) {
  oracleTest(`snapshots that we take are QEMU's too: ${titleOf(layout)}`, (t, directory) => {
    const random = new Random(seedOf(t, 8400 + index));
    const file = path.join(directory, FILE);
    const backing = makeBase(directory, layout);
    createImage(file, { ...layout.ours, format: 'qcow2', size: SIZE, ...(backing === undefined ? {} : { backing }) });
    let model: SnapshotModel | undefined;
    const rounds = LONG ? 12 : 2;
    // Each round leaves its snapshots, and a count names the disk and all of them.
    const references = 2 ** (layout.ours.refcountBits ?? 16) - 1;
    const most = Math.min(5, Math.floor((references - 1) / rounds));
    for (let round = 0; round < rounds; round++) {
      const image = open(file);
      const cluster = layout.ours.clusterSize ?? 64 * KIB;
      const next = new SnapshotModel(image.node, random, { cluster, most, grows: layout.ours.version !== 2 });
      if (model !== undefined) t.is(model.problem(image.node), undefined, 'reopened');
      model = next;
      for (let step = 0; step < (LONG ? 200 : 50); step++) model.step();
      if (model.snapshots.length === 0) model.take();
      image.close();
      sound(t, directory, `round ${round}`);
      t.is(firstDifference(theirs(directory), model.live), undefined, 'the disk');
      for (const snapshot of model.snapshots) {
        // QEMU's tool shows a snapshot with the size of the disk as it is now.
        const found = theirs(directory, snapshot);
        const length = Math.min(found.length, snapshot.bytes.length);
        const difference = firstDifference(found.subarray(0, length), snapshot.bytes.subarray(0, length));
        t.is(difference, undefined, `snapshot ${snapshot.id}`);
      }
      const [ours, qemu] = [imagefs(directory, ['snapshot', '-l', FILE]), qemuImg(directory, ['snapshot', '-l', FILE])];
      t.deepEqual([ours.code, ours.stdout], [0, qemu.stdout]);
    }
  });

  oracleTest(`snapshots that QEMU takes are ours too: ${titleOf(layout)}`, (t, directory) => {
    const random = new Random(seedOf(t, 8450 + index));
    const backing = makeBase(directory, layout);
    const words = backing === undefined ? [] : ['-b', backing.name, '-F', backing.format];
    make(directory, 'create', '-q', '-f', 'qcow2', '-o', layout.qemu, ...words, FILE, `${SIZE}`);
    const kept: { name: string; bytes: Uint8Array }[] = [];
    for (let round = 0; round < (LONG ? 12 : 3); round++) {
      writeByQemu(directory, random, 12);
      kept.push({ name: `snap${round}`, bytes: theirs(directory) });
      make(directory, 'snapshot', '-c', `snap${round}`, FILE);
      writeByQemu(directory, random, 6);
      if (kept.length > 2 && random.chance(0.5)) {
        const [{ name }] = kept.splice(random.below(kept.length), 1);
        make(directory, 'snapshot', '-d', name, FILE);
      }
      if (random.chance(0.5)) make(directory, 'snapshot', '-a', random.pick(kept).name, FILE);
      // Ours goes on where QEMU left off.
      const live = theirs(directory);
      const image = open(path.join(directory, FILE));
      t.is(firstDifference(contentOf(image.node), live), undefined, 'the disk');
      const found = listSnapshots(image.node).map(({ id, name }) => ({
        name,
        bytes: contentOf(openSnapshot(image.node, id)),
      }));
      t.deepEqual(
        found.map(({ name }) => name),
        kept.map(({ name }) => name),
      );
      kept.forEach(({ name, bytes }, at) => {
        t.is(firstDifference(found[at].bytes, bytes), undefined, name);
      });
      const model = new SnapshotModel(image.node, random, { cluster: 64 * KIB, most: 0, grows: false });
      for (let step = 0; step < 10; step++) model.write();
      t.is(model.problem(), undefined);
      image.close();
      sound(t, directory, `round ${round}`);
      t.is(firstDifference(theirs(directory), model.live), undefined, 'the disk as we left it');
    }
  });
}

function writeByQemu(directory: string, random: Random, count: number): void {
  const words: string[] = [];
  for (let i = 0; i < count; i++) {
    const offset = random.below(SIZE - 100 * KIB);
    const length = random.between(1, 90 * KIB);
    words.push(
      '-c',
      random.chance(0.75) ? `write -P ${random.below(255)} ${offset} ${length}` : `write -z ${offset} ${length}`,
    );
  }
  const { code, stderr } = run(directory, 'qemu-io', ['-f', 'qcow2', ...words, FILE]);
  if (code !== 0) throw new Error(stderr);
}

oracleTest('imagefs snapshot answers as qemu-img snapshot does', (t, directory) => {
  make(directory, 'create', '-q', '-f', 'qcow2', 'ours', '1M');
  make(directory, 'create', '-q', '-f', 'qcow2', 'qemus', '1M');
  make(directory, 'create', '-q', '-f', 'qed', 'qed', '1M');
  const steps = [
    ['-l'],
    ['-c', 'one'],
    ['-c', 'one'],
    ['-c', 'zwei: ä/b'],
    ['-c', ''],
    ['-q', '-d', 'one'],
    ['-d', 'one'],
    ['-d', 'one'],
    ['-d', '3'],
    ['-a', '3'],
    ['-a', 'zwei: ä/b'],
    ['-a', 'nope'],
    ['-l', '-c', 'x'],
    ['-Z'],
  ];
  for (const words of steps) {
    const ours = imagefs(directory, ['snapshot', ...words, 'ours']);
    const theirs = qemuImg(directory, ['snapshot', ...words, 'qemus']);
    t.is(ours.code, theirs.code, `${words.join(' ')}: ${ours.stderr} ${theirs.stderr}`);
    const names = (file: string) =>
      qemuImg(directory, ['snapshot', '-l', file])
        .stdout.split('\n')
        .map((line) => line.slice(0, 25));
    t.deepEqual(names('ours'), names('qemus'), words.join(' '));
  }
  t.regex(
    imagefs(directory, ['snapshot', '-d', 'gone', 'ours']).stderr,
    /^imagefs: Could not delete snapshot 'gone': snapshot not found\n$/,
  );
  for (const words of [['-c', 'x'], ['-a', 'x'], ['-d', 'x'], ['-l']]) {
    const ours = imagefs(directory, ['snapshot', ...words, 'qed']);
    t.is(ours.code, qemuImg(directory, ['snapshot', ...words, 'qed']).code, words.join(' '));
  }
});

oracleTest('imagefs snapshot leaves an image alone that is in use', (t, directory) => {
  make(directory, 'create', '-q', '-f', 'qcow2', FILE, '1M');
  const image = open(path.join(directory, FILE));
  t.teardown(() => image.close());
  for (const words of [['-c', 'x'], ['-l']]) {
    const { code, stderr } = imagefs(directory, ['snapshot', ...words, FILE]);
    t.is(code, 1);
    t.regex(stderr, /Failed to get (shared )?"\w+" lock/);
  }
  t.regex(imagefs(directory, ['snapshot', '-c', 'x', FILE]).stderr, /MOUNTPOINT\/snapshots/);
  t.is(imagefs(directory, ['snapshot', '-l', '-U', FILE]).code, 0);
  t.is(imagefs(directory, ['snapshot', '-c', 'x', '-U', FILE]).code, 1);
});
