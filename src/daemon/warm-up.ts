/**
 * A worker's code is compiled only after it has run for a while: the first thousands of writes take twice as long as those that follow.
 * While nobody asks for anything after mounting, the worker that will be asked first writes to an image in memory, of the format of
 * the one that is mounted (docs/adr/0017-warm-up.md).
 */
import * as fs from 'node:fs';
import type { BlockNode } from '../block/node';
import { attachImage, type ImageDescriptor } from '../block/open';
import { formatByName } from '../formats/registry';
import { Practice } from '../fuse/kernel/practice';
import { logOf } from '../log';
import { createImageState, ImageState } from '../shared/image-state';
import { createTableCache, TABLE_CACHE_MIN_BYTES } from '../shared/table-cache';
import { FileStorage } from '../storage/file';
import { untold } from '../system/long-wait';
import { memfdCreate } from '../system/memfd';
import { GIB, KIB, MIB, SECTOR_SIZE } from '../units';
import { createFileSystem } from '../vfs/image-filesystem';
import { buildTree } from '../vfs/tree';

/** Requests until what matters is compiled; with 2,000 some jobs begin slower (ADR 0017). */
const REQUESTS = 3000;
/** The smallest that all formats have, so that the image takes no more than REQUESTS of them, 12 MiB. */
const CLUSTER = 4 * KIB;
/** Many of the writes go behind this: V8 compiles code again when numbers first become larger than 31 bits. */
const FAR = 8 * GIB;
const DISK = FAR + 16 * MIB;
const REQUESTS_PER_FSYNC = 64;

/** So many requests of others, and there is work: it compiles what it needs by itself. To mount and to look around takes fewer. */
const BUSY_REQUESTS = 64;

const log = logOf('daemon:warm-up');

/**
 * What a worker does while nobody asks, as `KernelServeOptions` wants it; undefined when there is nothing to warm up for.
 * @param mount counts its requests
 */
export function warmUpWhileIdle(
  images: readonly (ImageDescriptor | undefined)[],
  mount: { readonly requests: number },
): (() => boolean) | undefined {
  const format = formatToWarmUp(images);
  // A log would be full of requests that nobody made.
  if (format === undefined || logOf('fuse:kernel').enabled) return undefined;
  const steps = warmUp(format);
  return () => {
    try {
      // The count of a mount that serves for days wraps.
      const isBusy = mount.requests < 0 || mount.requests >= BUSY_REQUESTS;
      // Syncs of memory: nobody has to serve in this worker's place meanwhile.
      if (!untold(() => (isBusy ? steps.return() : steps.next())).done) return true;
    } catch (error) {
      // A loss of speed, and nobody's data.
      log('%s: %s', format, error);
    }
    return false;
  };
}

/** The format to practise with: of the first image that can be written and allocates; undefined when there is none. */
export function formatToWarmUp(images: readonly (ImageDescriptor | undefined)[]): string | undefined {
  for (const image of images) {
    if (image === undefined) continue;
    const { header, storage } = image.layers[0];
    const { capabilities, create } = formatByName(header.format);
    const isWritable = storage.kind === 'file' && !storage.readOnly;
    if (isWritable && capabilities.clusters && capabilities.backing && create !== undefined) return header.format;
  }
  return undefined;
}

/**
 * Step by step, so that whoever asks meanwhile does not wait for all of it. However it ends, nothing stays open, and nothing is flushed:
 * all of it is thrown away.
 * @param format as `formatToWarmUp` gives it
 */
export function* warmUp(format: string): Generator<undefined, void> {
  const descriptors: number[] = [];
  const createFile = (): FileStorage => {
    const fd = memfdCreate('imagefs warm-up');
    descriptors.push(fd);
    return new FileStorage({ kind: 'file', fd, path: 'an image in memory', readOnly: false, isBlockDevice: false });
  };
  let practice: Practice | undefined;
  try {
    const [overlay, backing] = [createFile(), createFile()];
    backing.truncate(DISK, 'create');
    const options = { size: DISK, clusterSize: CLUSTER, backing: { name: backing.path, format: 'raw' } };
    formatByName(format).create?.(overlay, options);
    yield;
    const node = attach(overlay, format, backing);
    yield;
    const layers = [{ path: overlay.path, format, readOnly: false, mode: 0, mtimeMs: 0 }];
    const plan = buildTree([{ name: format, layers }], { singleImage: true, mountedMs: 0 });
    const fileSystem = createFileSystem(plan, [node], { growable: false, readOnly: false, uid: 0, gid: 0 });
    yield;
    practice = new Practice(fileSystem, fileSystem.lookup(fileSystem.rootIno, 'disk'), CLUSTER);
    for (let number = 0; number < REQUESTS; number++) {
      yield;
      ask(practice, number);
    }
  } finally {
    practice?.close();
    for (const fd of descriptors) fs.closeSync(fd);
  }
}

/** An overlay, because its way is the longer one: partial writes read what is below. */
function attach(overlay: FileStorage, format: string, backing: FileStorage): BlockNode {
  const layerOf = (storage: FileStorage, name: string, imageId: number) => {
    const module = formatByName(name);
    const header = module.readHeader(storage);
    const state = createImageState(1, imageId === 0);
    module.initState(header, storage, new ImageState(state, 0));
    return { storage: storage.describe(), header, state, imageId };
  };
  const layers = [layerOf(overlay, format, 0), layerOf(backing, 'raw', 1)];
  return attachImage({ layers, cache: createTableCache(TABLE_CACHE_MIN_BYTES) }, 0);
}

/** Of eight requests five write a new cluster, one a part of a new one, one a part of an old one; one reads. */
function ask(practice: Practice, number: number): void {
  const cluster = (number % 2) * FAR + Math.floor(number / 2) * CLUSTER;
  const kind = number % 8;
  if (kind < 5) practice.write(cluster, CLUSTER);
  else if (kind === 5) practice.write(cluster + SECTOR_SIZE, SECTOR_SIZE);
  else if (kind === 6) practice.write(cluster - 2 * CLUSTER, SECTOR_SIZE);
  else practice.read(cluster - 2 * CLUSTER, CLUSTER);
  if (number % REQUESTS_PER_FSYNC === 0) practice.fsync();
}
