/** A disk beside its model: every operation goes to both, and what is read must agree. */
import * as path from 'node:path';
import type { ExecutionContext } from 'ava';
import type { BlockNode } from '../../src/block/node';
import { attachChain, type OpenImage } from '../../src/block/open';
import { attachStorage } from '../../src/storage/attach';
import { PassingStorage } from '../../src/storage/passing';
import { alignDown, alignUp, MIB } from '../../src/units';
import { createImage, type ImageSpec, open, temporaryDirectory } from './images';
import { DiskModel, firstDifference, Scratch } from './model';
import { fillPattern, patternBytes, squeezableBytes } from './random';

/** Nobody pulls the plug in these tests, and waiting for the disk is most of their time. */
class Unsynced extends PassingStorage {
  override sync(): void {}
}

/** Disks up to this size are compared from end to end. */
const WHOLE_MAX = 48 * MIB;
const PIECE = MIB;
const FOUND = new Scratch();
const EXPECTED = new Scratch();

export class Shadowed {
  private tag = 1;

  constructor(
    public node: BlockNode,
    readonly model: DiskModel,
  ) {}

  get size(): number {
    return this.model.size;
  }

  /** Writes bytes that no other write of this disk has at this place. */
  write(offset: number, length: number): void {
    const bytes = patternBytes(offset, length, this.nextTag());
    this.node.write(offset, bytes, 0, length);
    this.model.write(offset, bytes);
  }

  /** The clusters that the range touches. */
  writeCompressed(offset: number, length: number): void {
    const from = alignDown(offset, this.node.clusterSize);
    const to = Math.min(this.size, alignUp(offset + length, this.node.clusterSize));
    const bytes = squeezableBytes(from, to - from, this.nextTag());
    this.node.write(from, bytes, 0, bytes.length, { compressed: true });
    this.model.write(from, bytes);
  }

  writeZeroes(offset: number, length: number): void {
    this.node.writeZeroes(offset, length);
    this.model.zero(offset, length);
  }

  allocate(offset: number, length: number): void {
    this.node.allocate(offset, length);
  }

  resize(size: number): void {
    this.node.resize(size);
    this.model.resize(size);
  }

  nextTag(): number {
    return this.tag++;
  }

  /** Why the disk is not as the model says; undefined when it is. */
  difference(offset: number, length: number): string | undefined {
    const bytes = FOUND.take(Math.min(length, PIECE));
    for (let done = 0; done < length; done += PIECE) {
      const count = Math.min(PIECE, length - done);
      // What a read leaves alone must not look right by chance.
      fillPattern(bytes, 0, offset, count, 99991);
      this.node.read(offset + done, bytes, 0, count);
      const expected = this.model.read(offset + done, count, EXPECTED.take(count));
      const at = firstDifference(bytes.subarray(0, count), expected);
      if (at >= 0) return `at ${offset + done + at}: read ${bytes[at]}, expected ${expected[at]}`;
    }
    return undefined;
  }

  /** The range and the clusters around it: a copy that went wrong shows beside the bytes that were written. */
  differenceAround(offset: number, length: number, around: number): string | undefined {
    const from = Math.max(0, alignDown(offset, around));
    const to = Math.min(this.size, alignUp(offset + length, around));
    return this.difference(from, to - from);
  }

  /** Of the whole disk; of a very large one, of the pages that were touched and one beside each. */
  differenceAnywhere(): string | undefined {
    if (this.node.size() !== this.size) return `size is ${this.node.size()}, expected ${this.size}`;
    if (this.size <= WHOLE_MAX) return this.difference(0, this.size);
    for (const start of this.model.touched()) {
      const from = Math.max(0, start - 4096);
      const found = this.difference(from, Math.min(this.size, start + 8192) - from);
      if (found !== undefined) return found;
    }
    return undefined;
  }
}

export interface ChainConfig {
  name: string;
  /** Top first. `backing` is filled in. */
  layers: Omit<ImageSpec, 'backing'>[];
}

export interface Chain {
  image: OpenImage;
  shadow: Shadowed;
  /** Paths, top first. */
  files: string[];
  /** Closes and opens again; the shadow then uses the new node. */
  reopen(): void;
  close(): void;
}

/**
 * Creates the chain's files, the lower layers filled where `fill` says, and opens the top read-write.
 * @param fill ranges of a lower layer that hold data, for a disk of this size
 */
export function makeChain(
  t: ExecutionContext,
  config: ChainConfig,
  fill: (size: number, depth: number) => { offset: number; length: number }[],
): Chain {
  const directory = temporaryDirectory(t);
  const files = config.layers.map((layer, depth) => path.join(directory, `${depth}.${layer.format}`));
  let below: DiskModel | undefined;
  for (let depth = files.length - 1; depth >= 0; depth--) {
    const spec = config.layers[depth];
    const lower = config.layers[depth + 1];
    const backing = lower === undefined ? undefined : { name: `${depth + 1}.${lower.format}`, format: lower.format };
    createImage(files[depth], { ...spec, backing });
    if (depth === 0) break;
    const model: DiskModel = new DiskModel(spec.size, below);
    const image = open(files[depth], { threads: 1 });
    for (const { offset, length } of fill(spec.size, depth)) {
      const bytes = patternBytes(offset, length, 1_000_000 * depth);
      image.node.write(offset, bytes, 0, length);
      model.write(offset, bytes);
    }
    image.close();
    below = model;
  }
  const shadow = new Shadowed(undefined as unknown as BlockNode, new DiskModel(config.layers[0].size, below));
  let closed = true;
  const chain: Chain = {
    image: undefined as unknown as OpenImage,
    shadow,
    files,
    reopen() {
      chain.close();
      chain.image = open(files[0]);
      closed = false;
      // Another thread's node, whose flushes cost no time: closing still syncs.
      shadow.node = attachChain(chain.image.describe(), 1, (layer) => new Unsynced(attachStorage(layer)));
    },
    close() {
      if (closed) return;
      closed = true;
      chain.image.close();
    },
  };
  t.teardown(() => chain.close());
  chain.reopen();
  return chain;
}
