/** Random programs against a model of the disk; afterwards our own check, and QEMU's where it is installed. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { maintain } from '../../src/block/open';
import { GIB, KIB, MIB } from '../../src/units';
import { checkFile, have, type ImageSpec } from '../helpers/images';
import { qcow2Spans, qcowSpans, qedSpans } from '../helpers/node-suite';
import { LONG, Random, seedOf } from '../helpers/random';
import { type Chain, type ChainConfig, makeChain, type Shadowed } from '../helpers/shadowed';

interface ModelConfig extends ChainConfig {
  cluster: number;
  /** QEMU 7.2 does not open table size 1, nor geometries whose largest disk has more than 2^64 bytes. */
  qemu: boolean;
}

const OPERATIONS = LONG ? 20_000 : 300;
const qed = (clusterSize: number, tableSize: number, size: number) =>
  ({ format: 'qed', clusterSize, tableSize, size }) as const;
const qcow2 = (clusterSize: number, size: number, more: Partial<ImageSpec> = {}) =>
  ({ ...more, format: 'qcow2', clusterSize, size }) as const;
const qcow = (clusterSize: number, size: number) => ({ format: 'qcow', clusterSize, size }) as const;
const raw = (size: number) => ({ format: 'raw', size }) as const;

const CONFIGS: ModelConfig[] = [
  { name: 'raw', layers: [raw(5 * MIB + 3 * 512)], cluster: 4 * KIB, qemu: false },
  { name: 'qed 4 KiB table 1', layers: [qed(4 * KIB, 1, 7 * MIB + 512)], cluster: 4 * KIB, qemu: false },
  { name: 'qed 4 KiB table 2', layers: [qed(4 * KIB, 2, 9 * MIB + 512)], cluster: 4 * KIB, qemu: true },
  {
    name: 'qed 4 KiB table 2 over shorter raw',
    layers: [qed(4 * KIB, 2, 9 * MIB + 5 * 512), raw(6 * MIB + 512)],
    cluster: 4 * KIB,
    qemu: true,
  },
  {
    name: 'qed 4 KiB table 16 over longer raw',
    layers: [qed(4 * KIB, 16, 9 * MIB + 5 * 512), raw(12 * MIB + 512)],
    cluster: 4 * KIB,
    qemu: true,
  },
  { name: 'qed 64 KiB table 4', layers: [qed(64 * KIB, 4, 20 * MIB + 7 * 512)], cluster: 64 * KIB, qemu: true },
  {
    name: 'qed 64 KiB over qed 4 KiB over raw',
    layers: [qed(64 * KIB, 1, 10 * MIB + 512), qed(4 * KIB, 1, 11 * MIB), raw(8 * MIB + 3 * 512)],
    cluster: 64 * KIB,
    qemu: false,
  },
  {
    name: 'qed 4 KiB over qed 2 MiB over raw',
    layers: [qed(4 * KIB, 2, 9 * MIB + 512), qed(2 * MIB, 2, 7 * MIB), raw(8 * MIB + 3 * 512)],
    cluster: 4 * KIB,
    qemu: true,
  },
  {
    name: 'qed 2 MiB table 16 over raw',
    layers: [qed(2 * MIB, 16, 16 * MIB + 512), raw(15 * MIB)],
    cluster: 2 * MIB,
    qemu: false,
  },
  { name: 'qed 4 KiB table 4, sparse', layers: [qed(4 * KIB, 4, 6 * GIB + 512)], cluster: 4 * KIB, qemu: false },
  { name: 'qcow2 64 KiB', layers: [qcow2(64 * KIB, 20 * MIB + 512)], cluster: 64 * KIB, qemu: true },
  {
    name: 'qcow2 512 bytes, refcounts of 64 bits, over raw',
    layers: [qcow2(512, 5 * MIB + 512, { refcountBits: 64 }), raw(4 * MIB)],
    cluster: 512,
    qemu: true,
  },
  {
    name: 'qcow2 4 KiB, refcounts of 1 bit, over qed',
    layers: [qcow2(4 * KIB, 9 * MIB + 512, { refcountBits: 1 }), qed(4 * KIB, 2, 10 * MIB)],
    cluster: 4 * KIB,
    qemu: true,
  },
  {
    name: 'qcow2 version 2 over qcow2 2 MiB',
    layers: [qcow2(4 * KIB, 9 * MIB + 512, { version: 2 }), qcow2(2 * MIB, 11 * MIB)],
    cluster: 4 * KIB,
    qemu: true,
  },
  {
    name: 'qcow2 16 KiB with subclusters',
    layers: [qcow2(16 * KIB, 20 * MIB + 512, { extendedL2: true })],
    cluster: 16 * KIB,
    qemu: true,
  },
  {
    name: 'qcow2 64 KiB with subclusters over shorter raw',
    layers: [qcow2(64 * KIB, 20 * MIB + 512, { extendedL2: true }), raw(15 * MIB + 512)],
    cluster: 64 * KIB,
    qemu: true,
  },
  { name: 'qcow2 4 KiB, sparse', layers: [qcow2(4 * KIB, 6 * GIB + 512)], cluster: 4 * KIB, qemu: false },
  { name: 'qcow 4 KiB', layers: [qcow(4 * KIB, 9 * MIB + 512)], cluster: 4 * KIB, qemu: true },
  { name: 'qcow 512 bytes over raw', layers: [qcow(512, 5 * MIB + 512), raw(4 * MIB)], cluster: 512, qemu: true },
  {
    name: 'qcow 64 KiB over qcow2 over qcow',
    layers: [qcow(64 * KIB, 20 * MIB + 512), qcow2(4 * KIB, 22 * MIB), qcow(4 * KIB, 11 * MIB + 512)],
    cluster: 64 * KIB,
    qemu: true,
  },
  {
    name: 'qed over qcow',
    layers: [qed(4 * KIB, 2, 9 * MIB + 512), qcow(512, 10 * MIB)],
    cluster: 4 * KIB,
    qemu: true,
  },
];

function lowerRanges(random: Random, size: number): { offset: number; length: number }[] {
  return Array.from({ length: 12 }, () => {
    const offset = random.below(size - 1);
    return { offset, length: Math.min(size - offset, random.between(1, 400 * KIB)) };
  });
}

/** Near the ends of clusters, slices and tables, and often where others were: collisions find more than distance. */
class Places {
  private readonly hot: number[];

  constructor(
    private readonly random: Random,
    private readonly config: ModelConfig,
    size: number,
  ) {
    const [top] = config.layers;
    const spans =
      top.format === 'qcow2'
        ? qcow2Spans(config.cluster, top.extendedL2)
        : top.format === 'qcow'
          ? qcowSpans(config.cluster, config.layers.length > 1)
          : qedSpans(config.cluster, top.tableSize ?? 4);
    this.hot = [0, spans.cluster, spans.slice, spans.table, 2 * spans.table, size - config.cluster, size];
    for (let i = 0; i < 8; i++) this.hot.push(random.below(size));
  }

  range(size: number): { offset: number; length: number } {
    const { random, config } = this;
    const most = Math.min(config.cluster * 4, 3 * MIB);
    const length = random.chance(0.5) ? random.between(1, 9000) : random.between(1, most);
    let offset = random.chance(0.7)
      ? random.pick(this.hot) + random.between(-2, 2) * random.pick([1, 512, config.cluster]) + random.between(-1, 1)
      : random.below(size);
    if (random.chance(0.3)) offset -= offset % config.cluster;
    offset = Math.max(0, Math.min(offset, size - 1));
    return { offset, length: Math.min(length, size - offset) };
  }
}

function runProgram(t: ExecutionContext, config: ModelConfig, random: Random, operations: number): Chain {
  const chain = makeChain(t, config, (size) => lowerRanges(random, size));
  const { shadow } = chain;
  const places = new Places(random, config, shadow.size);
  const compresses = config.layers[0].format.startsWith('qcow');
  for (let step = 0; step < operations; step++) {
    const { offset, length } = places.range(shadow.size);
    const what = random.below(100);
    const words = `step ${step}: `;
    if (what < 12 && compresses) shadow.writeCompressed(offset, length);
    else if (what < 42) shadow.write(offset, length);
    else if (what < 60) shadow.writeZeroes(offset, length);
    else if (what < 64) shadow.writeZeroes(offset, Math.min(shadow.size - offset, length * 20));
    else if (what < 69) shadow.allocate(offset, length);
    else if (what < 78) shadow.node.flush();
    else if (what < 80) maintain(shadow.node, Date.now() + 3_600_000);
    else if (what < 82 && random.chance(0.5)) grow(shadow, random, config);
    else if (what < 84 && random.chance(0.5)) chain.reopen();
    const problem = shadow.differenceAround(offset, length, Math.min(config.cluster, 64 * KIB));
    if (problem !== undefined) {
      t.fail(`${config.name}: ${words}operation ${what} at ${offset}+${length}: ${problem}`);
      return chain;
    }
  }
  t.is(shadow.differenceAnywhere(), undefined, config.name);
  chain.reopen();
  t.is(shadow.differenceAnywhere(), undefined, `${config.name}: after reopen`);
  chain.close();
  const result = checkFile(chain.files[0]);
  // In qcow the places of streams that were overwritten are lost.
  const leaks = config.layers[0].format === 'qcow' ? 0 : result.leaks;
  t.deepEqual([result.corruptions, result.checkErrors, leaks], [0, 0, 0], result.messages.join('; '));
  return chain;
}

function grow(shadow: Shadowed, random: Random, config: ModelConfig): void {
  shadow.resize(shadow.size + 512 * random.pick([1, 7, config.cluster / 512, random.between(1, 2000)]));
}

/** In QED a discarded cluster inside the file is a leak for QEMU (exit 3); a corruption (exit 2) never is one. */
function checkWithQemu(t: ExecutionContext, config: ModelConfig, chain: Chain): void {
  const { format } = config.layers[0];
  const check = spawnSync('qemu-img', ['check', '-f', format, chain.files[0]], { encoding: 'utf8' });
  t.true(
    check.status === 0 || (check.status === 3 && format === 'qed') || (check.status === 63 && format === 'qcow'),
    `${config.name}: ${check.stdout}${check.stderr}`,
  );
  const plain = path.join(path.dirname(chain.files[0]), 'plain');
  fs.writeFileSync(plain, chain.shadow.model.read(0, chain.shadow.size));
  const compare = spawnSync('qemu-img', ['compare', '-f', format, '-F', 'raw', chain.files[0], plain], {
    encoding: 'utf8',
  });
  t.is(compare.status, 0, `${config.name}: ${compare.stdout}${compare.stderr}`);
}

for (const [index, config] of CONFIGS.entries()) {
  test(`${config.name}: ${OPERATIONS} random operations leave what the model says`, (t) => {
    const random = new Random(seedOf(t, 1000 + index));
    runProgram(t, config, random, OPERATIONS);
  });
}

for (const [index, config] of CONFIGS.filter((candidate) => candidate.qemu).entries()) {
  test(`${config.name}: QEMU finds no corruption and the same content after random operations`, (t) => {
    if (!have(t, 'qemu-img')) return;
    const random = new Random(seedOf(t, 2000 + index));
    checkWithQemu(t, config, runProgram(t, config, random, LONG ? 3000 : 60));
  });
}
