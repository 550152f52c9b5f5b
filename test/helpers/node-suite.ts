/**
 * The contract of a `BlockNode`, for every kind of node: one chain of images, one test for each clause. Cases are
 * counted, so that a suite cannot shrink to nothing unseen.
 */
import type { ExecutionContext, TestFn } from 'ava';
import type { BlockNode, BlockStatus } from '../../src/block/node';
import { BlockError } from '../../src/errors';
import { alignDown, KIB, MIB } from '../../src/units';
import { checkFile, open } from './images';
import { type Chain, type ChainConfig, makeChain } from './shadowed';

export interface SuiteConfig extends ChainConfig {
  /** Guest bytes of a cluster, of what one slice of a table maps, of what one L2 table maps. */
  spans: { cluster: number; slice: number; table: number };
  /** Longest single write: whole clusters of 64 MiB take too long. */
  longest: number;
}

/** Spans of a QED geometry, for `SuiteConfig`. */
export function qedSpans(clusterSize: number, tableSize: number): SuiteConfig['spans'] {
  const entries = (clusterSize * tableSize) / 8;
  return { cluster: clusterSize, slice: Math.min(entries, 2048) * clusterSize, table: entries * clusterSize };
}

/** The same of a qcow2 geometry. */
export function qcow2Spans(clusterSize: number, extendedL2 = false): SuiteConfig['spans'] {
  const entries = clusterSize / (extendedL2 ? 16 : 8);
  const inSlice = Math.min(entries, (16 * KIB) / (extendedL2 ? 16 : 8));
  return { cluster: clusterSize, slice: inSlice * clusterSize, table: entries * clusterSize };
}

/** The same of a qcow image as it is created, alone or over a backing file. */
export function qcowSpans(clusterSize: number, backed: boolean): SuiteConfig['spans'] {
  const entries = backed ? 4096 : 512;
  return { cluster: clusterSize, slice: Math.min(entries, 2048) * clusterSize, table: entries * clusterSize };
}

interface Range {
  offset: number;
  length: number;
}

/** {1, 512, cluster} × {0, cluster, slice, L2 span, end} × {-1, 0, +1}: starting there, and ending there. Inside and outside. */
export function boundaryRanges(config: SuiteConfig, size: number): { inside: Range[]; outside: Range[] } {
  const { cluster, slice, table } = config.spans;
  const seen = new Set<string>();
  const inside: Range[] = [];
  const outside: Range[] = [];
  for (const position of [0, cluster, slice, table, size]) {
    for (const length of [1, 512, Math.min(cluster, config.longest)]) {
      for (const delta of [-1, 0, 1]) {
        for (const offset of [position + delta, position + delta - length]) {
          const key = `${offset} ${length}`;
          if (seen.has(key)) continue;
          seen.add(key);
          (offset >= 0 && offset + length <= size ? inside : outside).push({ offset, length });
        }
      }
    }
  }
  return { inside, outside };
}

/** Data of the lower layers: on both sides of every boundary, different in each layer, and with gaps. */
function lowerData(config: SuiteConfig, size: number, depth: number): Range[] {
  const { cluster, slice, table } = config.spans;
  const reach = Math.min(cluster, 64 * KIB);
  const ranges: Range[] = [];
  for (const position of [0, cluster, slice, table, size - (size % cluster), size]) {
    const offset = Math.max(0, position - reach - 512 * depth);
    const length = Math.min(size, position + reach + 1000 * depth) - offset;
    if (length > 0 && offset < size) ranges.push({ offset, length });
  }
  return ranges;
}

/** Registers the suite. */
export function nodeSuite(test: TestFn, config: SuiteConfig): void {
  const make = (t: ExecutionContext) => makeChain(t, config, (size, depth) => lowerData(config, size, depth));
  const around = Math.min(config.spans.cluster, 2 * MIB);
  const { size } = config.layers[0];
  const { inside, outside } = boundaryRanges(config, size);
  const title = (words: string) => `${config.name}: ${words}`;

  test(title('read() gives what the chain holds at every boundary'), (t) => {
    const { shadow } = make(t);
    let cases = 0;
    for (const { offset, length } of inside) {
      t.is(shadow.difference(offset, length), undefined, `${offset}+${length}`);
      cases++;
    }
    t.true(cases >= 40, `${cases} cases`);
  });

  test(title('write() changes its bytes and no others, at every boundary, through reopen'), (t) => {
    const chain = make(t);
    const { shadow } = chain;
    let cases = 0;
    for (const { offset, length } of inside) {
      shadow.write(offset, length);
      const found = shadow.differenceAround(offset, length, around);
      if (found !== undefined) return t.fail(`${offset}+${length}: ${found}`);
      cases++;
    }
    chain.reopen();
    t.is(shadow.differenceAnywhere(), undefined);
    t.true(cases >= 40, `${cases} cases`);
    sound(t, chain);
  });

  test(title('writeZeroes() hides what lies below, also from later partial writes'), (t) => {
    const chain = make(t);
    const { shadow } = chain;
    let cases = 0;
    for (const { offset, length } of inside) {
      shadow.writeZeroes(offset, length);
      const found = shadow.differenceAround(offset, length, around);
      if (found !== undefined) return t.fail(`${offset}+${length}: ${found}`);
      cases++;
    }
    for (const { offset, length } of inside.filter((range) => range.length <= 512)) {
      shadow.write(offset, length);
      const found = shadow.differenceAround(offset, length, around);
      if (found !== undefined) return t.fail(`write into zeroes ${offset}+${length}: ${found}`);
      cases++;
    }
    chain.reopen();
    t.is(shadow.differenceAnywhere(), undefined);
    t.true(cases >= 60, `${cases} cases`);
    sound(t, chain);
  });

  test(title('writeZeroes() of everything leaves no byte, and writes come back alone'), (t) => {
    const chain = make(t);
    const { shadow } = chain;
    for (const { offset, length } of inside) shadow.write(offset, length);
    shadow.node.flush();
    shadow.writeZeroes(0, size);
    t.is(shadow.differenceAnywhere(), undefined);
    shadow.node.flush();
    shadow.node.flush();
    for (const { offset, length } of inside.filter((range) => range.length <= 512)) shadow.write(offset, length);
    t.is(shadow.differenceAnywhere(), undefined);
    chain.reopen();
    t.is(shadow.differenceAnywhere(), undefined);
    sound(t, chain);
  });

  test(
    title('write() of compressed clusters reads back, and takes other writes; refused where there are none'),
    (t) => {
      const chain = make(t);
      const { shadow } = chain;
      const { node } = shadow;
      const bytes = new Uint8Array(Math.min(size, 2 * Math.max(512, node.clusterSize)));
      if (!node.format.startsWith('qcow')) {
        const write = () => node.write(0, bytes, 0, bytes.length, { compressed: true });
        t.is(t.throws(write, { instanceOf: BlockError })?.code, 'UNSUPPORTED_FEATURE');
        t.is(shadow.differenceAnywhere(), undefined);
        return;
      }
      for (const [offset, length] of [
        [1, node.clusterSize],
        [0, node.clusterSize - 1],
        [node.clusterSize, 512],
      ]) {
        const write = () => node.write(offset, bytes, 0, length, { compressed: true });
        if (length % node.clusterSize !== 0 || offset % node.clusterSize !== 0) {
          t.is(t.throws(write, { instanceOf: BlockError })?.code, 'OUT_OF_BOUNDS', `${offset}+${length}`);
        }
      }
      let streams = 0;
      const writes = inside.filter((_, index) => index % 3 === 0);
      for (const [index, { offset, length }] of writes.entries()) {
        if (index % 3 === 2) shadow.write(offset, length);
        shadow.writeCompressed(offset, length);
        const status = node.layerStatus(offset, 1);
        t.true(status.present && status.data);
        if (status.compressed === true) streams++;
        if (index % 4 === 1) shadow.write(offset, length);
        if (index % 4 === 2) shadow.writeZeroes(offset, length);
        if (index % 4 === 3) node.flush();
        const found = shadow.differenceAround(offset, length, around);
        if (found !== undefined) return t.fail(`${offset}+${length}: ${found}`);
      }
      t.true(streams >= 5 && writes.length >= 12, `${streams} of ${writes.length} writes`);
      chain.reopen();
      t.is(shadow.differenceAnywhere(), undefined);
      for (const { offset, length } of inside.filter((_, index) => index % 5 === 0)) shadow.write(offset, length);
      t.is(shadow.differenceAnywhere(), undefined);
      // In qcow the places of streams that were overwritten are lost.
      sound(t, chain, node.format === 'qcow');
    },
  );

  test(title('allocate() keeps the content, and makes place'), (t) => {
    const chain = make(t);
    const { shadow } = chain;
    const reach = Math.min(config.longest, 3 * config.spans.cluster);
    const { cluster, slice, table } = config.spans;
    shadow.write(Math.min(700, size - 1), 1);
    shadow.writeZeroes(Math.min(cluster, size - 512), 512);
    for (const position of [0, cluster, slice, table, size - 1]) {
      const offset = Math.min(position + 1, size - 1);
      const length = Math.min(reach, size - offset);
      shadow.allocate(offset, length);
      const found = shadow.differenceAround(offset, length, around);
      if (found !== undefined) return t.fail(`${offset}+${length}: ${found}`);
      if (config.layers[0].format === 'raw') continue;
      const status = shadow.node.layerStatus(offset, length);
      t.true(status.data && status.length === length, `allocated ${offset}+${length}: ${JSON.stringify(status)}`);
    }
    chain.reopen();
    t.is(shadow.differenceAnywhere(), undefined);
    sound(t, chain);
  });

  test(title('status() and layerStatus() agree with what is read, from any position'), (t) => {
    const { shadow } = make(t);
    for (const { offset, length } of inside.filter((_, index) => index % 3 === 0)) shadow.write(offset, length);
    for (const { offset, length } of inside.filter((_, index) => index % 7 === 1)) shadow.writeZeroes(offset, length);
    const cases = checkStatus(t, shadow.node, (offset, length) => shadow.model.read(offset, length), config);
    t.true(cases >= 20, `${cases} cases`);
  });

  test(title('OUT_OF_BOUNDS past the end, and nothing is written'), (t) => {
    const { shadow } = make(t);
    const { node } = shadow;
    const buffer = new Uint8Array(config.longest).fill(9);
    const ends = [
      ...outside,
      { offset: size, length: 1 },
      { offset: size + 512, length: 512 },
      { offset: -1, length: 1 },
    ];
    let cases = 0;
    for (const { offset, length } of ends) {
      for (const attempt of [
        () => node.read(offset, buffer, 0, length),
        () => node.write(offset, buffer, 0, length),
        () => node.writeZeroes(offset, length),
        () => node.allocate(offset, length),
        () => node.status(offset, length),
        () => node.layerStatus(offset, length),
      ]) {
        const error = t.throws(attempt, { instanceOf: BlockError }, `${offset}+${length}`);
        t.is(error?.code, 'OUT_OF_BOUNDS');
        cases++;
      }
    }
    t.true(cases >= 60, `${cases} cases`);
    t.is(shadow.differenceAnywhere(), undefined);
    t.is(node.size(), size);
  });

  test(title('READ_ONLY refuses every change; reads stay'), (t) => {
    const chain = make(t);
    chain.close();
    const image = open(chain.files[0], { readOnly: true });
    t.teardown(() => image.close());
    const { node } = image;
    chain.shadow.node = node;
    const buffer = new Uint8Array(512);
    for (const attempt of [
      () => node.write(0, buffer, 0, 512),
      () => node.writeZeroes(0, 512),
      () => node.allocate(0, 512),
      () => node.resize(size + 512),
    ]) {
      t.is(t.throws(attempt, { instanceOf: BlockError })?.code, 'READ_ONLY');
    }
    t.notThrows(() => node.flush());
    t.is(chain.shadow.differenceAnywhere(), undefined);
  });

  test(title('resize() grows, the new part reads zero, shrinking is refused'), (t) => {
    const chain = make(t);
    const { shadow } = chain;
    shadow.write(size - 1, 1);
    const lower = Math.max(...config.layers.map((layer) => layer.size));
    for (const next of [
      size + 512,
      size + config.spans.cluster + 512,
      Math.max(lower, size + 2 * config.spans.cluster) + 4096,
    ]) {
      const before = shadow.size;
      shadow.resize(next);
      t.is(shadow.node.size(), next);
      t.is(shadow.differenceAround(before - 1, 1024, around), undefined);
      t.is(shadow.differenceAnywhere(), undefined);
      shadow.write(before + 100, 300);
      shadow.write(next - 5, 5);
      t.is(shadow.differenceAnywhere(), undefined);
    }
    t.is(t.throws(() => shadow.node.resize(size), { instanceOf: BlockError })?.code, 'OUT_OF_BOUNDS');
    t.is(t.throws(() => shadow.node.resize(shadow.size + 1), { instanceOf: BlockError })?.code, 'OUT_OF_BOUNDS');
    chain.reopen();
    t.is(shadow.differenceAnywhere(), undefined);
    sound(t, chain);
  });

  test(title('statistics() counts what was asked'), (t) => {
    const { shadow } = make(t);
    const before = shadow.node.statistics();
    shadow.write(0, 512);
    shadow.write(512, 10);
    shadow.difference(0, 512);
    shadow.node.flush();
    shadow.writeZeroes(0, 512);
    t.throws(() => shadow.node.read(size, new Uint8Array(1), 0, 1));
    const after = shadow.node.statistics();
    t.is(after.writeOperations - before.writeOperations, 2);
    t.is(after.writeBytes - before.writeBytes, 522);
    t.is(after.readOperations - before.readOperations, 1);
    t.is(after.readBytes - before.readBytes, 512);
    t.is(after.flushOperations - before.flushOperations, 1);
    t.is(after.unmapOperations - before.unmapOperations, 1);
    t.is(after.writeHighestOffset, 522);
  });
}

/** The file is closed: nothing is corrupt, nothing leaked. */
function sound(t: ExecutionContext, chain: Chain, mayLeak = false): void {
  chain.close();
  const result = checkFile(chain.files[0]);
  const leaks = mayLeak ? 0 : result.leaks;
  t.deepEqual([result.corruptions, result.checkErrors, leaks], [0, 0, 0], result.messages.join('; '));
}

/** Walks the disk by status, then asks at the places around every change. @returns cases */
function checkStatus(
  t: ExecutionContext,
  node: BlockNode,
  read: (offset: number, length: number) => Uint8Array,
  config: SuiteConfig,
): number {
  const size = node.size();
  let cases = 0;
  const starts: number[] = [];
  let last = '';
  for (let at = 0; at < size; ) {
    const status = node.status(at, size - at);
    if (status.length <= 0 || status.length > size - at) {
      t.fail(`status at ${at} has length ${status.length}`);
      return cases;
    }
    // Runs also end where a table slice ends: only real changes are looked at from all sides.
    const kind = `${status.present} ${status.zero} ${status.depth}`;
    if (kind !== last) starts.push(at);
    last = kind;
    cases += agrees(t, node, at, status, read, config);
    at += status.length;
  }
  for (const start of starts) {
    for (const offset of [start - 1, start, start + 1, start + 511, alignDown(start, 4096) + 5]) {
      if (offset < 0 || offset >= size) continue;
      for (const length of [1, 513, size - offset]) {
        const wanted = Math.min(length, size - offset);
        cases += agrees(t, node, offset, node.status(offset, wanted), read, config, wanted);
        const own = node.layerStatus(offset, wanted);
        if (own.depth !== 0 || own.length < 1 || own.length > wanted)
          t.fail(`layerStatus at ${offset}: ${JSON.stringify(own)}`);
        cases++;
      }
    }
  }
  return cases;
}

/** What a run claims must be so: zero reads zero, and the deciding layer gives the same bytes. */
function agrees(
  t: ExecutionContext,
  node: BlockNode,
  offset: number,
  status: BlockStatus,
  read: (offset: number, length: number) => Uint8Array,
  config: SuiteConfig,
  wanted = Number.MAX_SAFE_INTEGER,
): number {
  const problem = (words: string) => t.fail(`${config.name} status at ${offset} ${JSON.stringify(status)}: ${words}`);
  if (status.length < 1 || status.length > wanted) problem(`length is not in [1, ${wanted}]`);
  // Both: a place that was taken in advance, with nothing in it.
  if (!status.zero && !status.data) problem('neither zero nor data');
  // Both ends of the run: the middle of a huge one says nothing new.
  const sample = Math.min(status.length, 8 * KIB);
  for (const from of [offset, offset + status.length - sample]) {
    const bytes = read(from, sample);
    if (status.zero && bytes.some((byte) => byte !== 0)) problem('says zero, reads otherwise');
    let layer: BlockNode | undefined = node;
    for (let depth = 0; depth < status.depth; depth++) layer = layer?.backing;
    if (layer === undefined) problem('no layer is so deep');
    else if (status.data) {
      const direct = new Uint8Array(sample);
      layer.read(from, direct, 0, sample);
      if (Buffer.compare(direct, bytes) !== 0) problem('the deciding layer reads otherwise');
    }
  }
  return 1;
}
