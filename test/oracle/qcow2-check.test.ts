/** Every kind of damage: what we find beside what qemu-img finds, and what is left after our repair. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { ExecutionContext } from 'ava';
import type { CheckResult, RepairMode } from '../../src/formats/format';
import { readQcow2Header } from '../../src/formats/qcow2/header';
import { formatByName } from '../../src/formats/registry';
import { FileStorage } from '../../src/storage/file';
import { Qcow2Bytes } from '../helpers/qcow2-bytes';
import { DAMAGES, type Damage, type ImageKind } from '../helpers/qcow2-damages';
import { imagefs, make, oracleTest, qemuImg, run, sharedDirectory } from './qemu';

const GUEST_CLUSTER = 64 * 1024;
const WRITES = ['write -P 1 0 1M', 'write -P 2 2M 64k', 'write -z 3M 128k', 'write -P 3 4M 100k'];

interface Recipe {
  options: string;
  /** Words for create behind the options. */
  words?: string[];
  /** What happens after the usual writes. */
  after?: (directory: string, file: string) => void;
}

const RECIPES: Record<ImageKind, Recipe> = {
  plain: { options: 'cluster_size=64k' },
  small: { options: 'cluster_size=512' },
  narrow: { options: 'refcount_bits=1' },
  wide: { options: 'refcount_bits=64' },
  v2: { options: 'compat=0.10' },
  overlay: { options: 'cluster_size=64k', words: ['-b', 'base.raw', '-F', 'raw'] },
  snapshots: {
    options: 'cluster_size=64k',
    after: (directory, file) => {
      make(directory, 'snapshot', '-c', 'one', file);
      qemuIo(directory, file, 'write -P 9 0 128k');
      make(directory, 'snapshot', '-c', 'two', file);
      qemuIo(directory, file, 'write -P 8 64k 128k');
    },
  },
  compressed: {
    options: 'cluster_size=64k',
    after: (directory, file) => {
      fs.rmSync(path.join(directory, file));
      make(directory, 'convert', '-c', '-O', 'qcow2', 'noise.raw', file);
      qemuIo(directory, file, 'write -P 1 256k 64k');
    },
  },
  extended: {
    options: 'extended_l2=on',
    after: (directory, file) => qemuIo(directory, file, 'write -P 5 5M 2k', 'write -z 5255168 4k'),
  },
  'data-file': { options: 'data_file=data.raw' },
  bitmaps: {
    options: 'cluster_size=64k',
    after: (directory, file) => {
      make(directory, 'bitmap', '--add', '--enable', file, 'first');
      make(directory, 'bitmap', '--add', file, 'second');
      qemuIo(directory, file, 'write -P 1 6M 1M');
    },
  },
};

function qemuIo(directory: string, file: string, ...commands: string[]): void {
  const { code, stderr } = run(directory, 'qemu-io', ['-f', 'qcow2', ...commands.flatMap((c) => ['-c', c]), file]);
  if (code !== 0) throw new Error(`qemu-io: ${stderr}`);
}

/** One image of each kind, and what each reads. */
function fillDirectory(directory: string): void {
  fs.writeFileSync(path.join(directory, 'base.raw'), Buffer.alloc(8 * 1024 * 1024, 0x77));
  // Half of each cluster can be compressed.
  const noise = Buffer.alloc(1024 * 1024);
  let seed = 1;
  for (let at = 0; at < noise.length; at++) {
    seed = (seed * 48271) % 2147483647;
    if (at % GUEST_CLUSTER < GUEST_CLUSTER / 8) noise[at] = seed % 256;
  }
  fs.writeFileSync(path.join(directory, 'noise.raw'), noise);
  for (const [kind, recipe] of Object.entries(RECIPES)) {
    const file = `${kind}.qcow2`;
    make(directory, 'create', '-q', '-f', 'qcow2', '-o', recipe.options, ...(recipe.words ?? []), file, '8M');
    qemuIo(directory, file, ...WRITES);
    recipe.after?.(directory, file);
    make(directory, 'convert', '-O', 'raw', file, `${kind}.raw`);
  }
}

function check(file: string, repair: RepairMode): CheckResult {
  const format = formatByName('qcow2');
  const storage = FileStorage.open(file, { readOnly: repair === 'none' });
  try {
    const result = format.check?.(readQcow2Header(storage, true), storage, repair);
    if (result === undefined) throw new Error('qcow2 has a check');
    return result;
  } finally {
    storage.close();
  }
}

function counts(result: CheckResult): Record<string, number> {
  return {
    corruptions: result.corruptions,
    leaks: result.leaks,
    'check-errors': result.checkErrors,
    'total-clusters': result.totalClusters,
    'allocated-clusters': result.allocatedClusters,
    'fragmented-clusters': result.fragmentedClusters,
    'compressed-clusters': result.compressedClusters,
    'image-end-offset': result.imageEndOffset,
  };
}

/** What qemu-img counts; undefined when it gives no report. */
function theirCounts(directory: string, file: string, names: string[]): Record<string, number> | undefined {
  // Its lines about each entry may be megabytes.
  const { stdout } = spawnSync('qemu-img', ['check', '--output=json', file], {
    cwd: directory,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  if (!stdout.startsWith('{')) return;
  const report: Record<string, number> = JSON.parse(stdout);
  return Object.fromEntries(names.map((name) => [name, report[name] ?? 0]));
}

/** The damaged image as a new file of the directory. */
function damaged(directory: string, damage: Damage, file: string): string {
  const image = new Qcow2Bytes(path.join(directory, `${damage.image}.qcow2`));
  damage.damage(image);
  image.save(path.join(directory, file));
  return path.join(directory, file);
}

function titleOf(damage: Damage): string {
  return `${damage.image}: ${damage.name}`;
}

oracleTest('imagefs check counts in damaged qcow2 images what qemu-img counts', (t) => {
  const directory = sharedDirectory(fillDirectory);
  for (const damage of DAMAGES) {
    const file = damaged(directory, damage, 'counted.qcow2');
    const before = fs.readFileSync(file);
    const ours = counts(check(file, 'none'));
    const theirs = theirCounts(directory, 'counted.qcow2', Object.keys(ours));
    if (damage.differs === undefined) t.deepEqual(ours, theirs, titleOf(damage));
    else t.true(ours.corruptions > 0, titleOf(damage));
    t.true(fs.readFileSync(file).equals(before), `${titleOf(damage)}: a check changes nothing`);
  }
  t.is(DAMAGES.length, 118);
});

/** Everything but the clusters that are lost reads as before. */
function sameContent(t: ExecutionContext, directory: string, damage: Damage, file: string): void {
  if (damage.unreadable !== undefined) return;
  make(directory, 'convert', '-O', 'raw', file, 'repaired.raw');
  const [before, after] = [`${damage.image}.raw`, 'repaired.raw'].map((name) =>
    fs.readFileSync(path.join(directory, name)),
  );
  t.is(after.length, before.length, titleOf(damage));
  const lost = new Set(damage.lost ?? []);
  for (let at = 0, cluster = 0; at < before.length; at += GUEST_CLUSTER, cluster++) {
    if (lost.has(cluster)) continue;
    const end = at + GUEST_CLUSTER;
    if (!before.subarray(at, end).equals(after.subarray(at, end))) {
      t.fail(`${titleOf(damage)}: guest cluster ${cluster} reads differently`);
      return;
    }
  }
}

oracleTest('imagefs check -r all repairs damaged qcow2 images: qemu-img finds nothing, the data is there', (t) => {
  const directory = sharedDirectory(fillDirectory);
  for (const damage of DAMAGES) {
    const title = titleOf(damage);
    const file = damaged(directory, damage, 'repaired.qcow2');
    const found = check(file, 'none');
    const result = check(file, 'all');
    if (damage.remains !== undefined) {
      t.true(result.corruptions > 0, `${title}: ${damage.remains}`);
      continue;
    }
    t.is(result.corruptions + result.leaks + result.checkErrors, 0, `${title}\n${result.messages.join('\n')}`);
    if (found.corruptions + found.leaks > 0) t.true(result.corruptionsFixed + result.leaksFixed > 0, title);
    const theirs = qemuImg(directory, ['check', 'repaired.qcow2']);
    t.is(theirs.code, 0, `${title}\n${theirs.stdout}${theirs.stderr}`);
    const repaired = fs.readFileSync(file);
    if (damage.image !== 'v2') t.is(repaired[79] % 4, 0, `${title}: neither dirty nor corrupt`);
    sameContent(t, directory, damage, 'repaired.qcow2');
    check(file, 'all');
    t.true(fs.readFileSync(file).equals(repaired), `${title}: a second repair changes nothing`);
  }
});

oracleTest('imagefs check -r leaks frees leaks of sound images, and nothing in damaged ones', (t) => {
  const directory = sharedDirectory(fillDirectory);
  let leaky = 0;
  for (const damage of DAMAGES) {
    const title = titleOf(damage);
    const file = damaged(directory, damage, 'leaks.qcow2');
    const found = check(file, 'none');
    const before = fs.readFileSync(file);
    const result = check(file, 'leaks');
    if (found.corruptions === 0) {
      leaky += found.leaks > 0 ? 1 : 0;
      t.is(result.leaks, 0, title);
      t.is(result.leaksFixed, found.leaks, title);
      t.is(qemuImg(directory, ['check', 'leaks.qcow2']).code, 0, title);
      sameContent(t, directory, damage, 'leaks.qcow2');
    } else if (result.corruptions > 0) {
      t.true(fs.readFileSync(file).equals(before), `${title}: left alone`);
    }
  }
  t.true(leaky >= 10, `${leaky}`);
});

oracleTest('imagefs check has the exit codes and the report of qemu-img on qcow2', (t) => {
  const directory = sharedDirectory(fillDirectory);
  const cases: [name: string, code: number][] = [
    ['corrupt bit alone', 0],
    ['count of data 0', 2],
    ['L2 entry cleared', 3],
    ['refcount block not aligned', 1],
  ];
  for (const [name, code] of cases) {
    const damage = DAMAGES.find((candidate) => candidate.image === 'plain' && candidate.name === name);
    if (damage === undefined) throw new Error(name);
    damaged(directory, damage, 'code.qcow2');
    for (const output of ['human', 'json']) {
      const words = ['check', `--output=${output}`, 'code.qcow2'];
      const [ours, theirs] = [imagefs(directory, words), qemuImg(directory, words)];
      t.is(ours.code, code, name);
      t.is(theirs.code, code, name);
      t.is(ours.stdout, theirs.stdout, name);
      if (code !== 1) t.deepEqual(ours.stderr.split('\n').sort(), theirs.stderr.split('\n').sort(), name);
    }
  }
});
