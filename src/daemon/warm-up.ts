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
import { alignDown, GIB, KIB, MIB, SECTOR_SIZE } from '../units';
import { createFileSystem } from '../vfs/image-filesystem';
import { buildTree } from '../vfs/tree';

/** Requests until what matters is compiled; with 2,000 some jobs begin slower (ADR 0017). */
const REQUESTS = 3000;
/** The smallest that all formats have, so that the image takes no more than REQUESTS of them, 12 MiB. */
const CLUSTER = 4 * KIB;
/** Room for the writes at the beginning of the disk, and for those at its end. */
const PART = 16 * MIB;
/** The largest disk that all formats can have with such clusters. */
const DISK_MAX = 16 * GIB;
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
  const model = modelOf(images);
  // A log would be full of requests that nobody made.
  if (model === undefined || logOf('fuse:kernel').enabled) return undefined;
  const steps = warmUp(model);
  return () => {
    try {
      // The count of a mount that serves for days wraps.
      const isBusy = mount.requests < 0 || mount.requests >= BUSY_REQUESTS;
      // Syncs of memory: nobody has to serve in this worker's place meanwhile.
      if (!untold(() => (isBusy ? steps.return() : steps.next())).done) return true;
    } catch (error) {
      // A loss of speed, and nobody's data.
      log('%s: %s', model.format, error);
    }
    return false;
  };
}

/** What the image in memory has of the real one: V8 compiles for the kinds of objects and numbers that it has seen. */
export interface Model {
  format: string;
  /** Of the disk, bytes: numbers of more than 31 bits are another kind. */
  size: number;
  isOverlay: boolean;
  /** Nobody said the format: then the header has one field more. */
  probed: boolean;
}

/** Of the first image that can be written and allocates; undefined when there is none. */
export function modelOf(images: readonly (ImageDescriptor | undefined)[]): Model | undefined {
  for (const image of images) {
    if (image === undefined) continue;
    const { header, storage } = image.layers[0];
    const { capabilities, create } = formatByName(header.format);
    const isWritable = storage.kind === 'file' && !storage.readOnly;
    if (!isWritable || !capabilities.clusters || create === undefined) continue;
    const { virtualSize: size, probed = false } = header;
    return { format: header.format, size, isOverlay: image.layers.length > 1, probed };
  }
  return undefined;
}

/**
 * Step by step, so that whoever asks meanwhile does not wait for all of it. Whether it ends by itself, by an error or by `return()`, nothing stays
 * open, and nothing is flushed: all of it is thrown away. When the mount ends first, the end of the process closes it.
 */
export function* warmUp({ format, size, isOverlay, probed }: Model): Generator<undefined, void> {
  const descriptors: number[] = [];
  const createFile = (): FileStorage => {
    const fd = memfdCreate('imagefs warm-up');
    descriptors.push(fd);
    return new FileStorage({ kind: 'file', fd, path: 'an image in memory', readOnly: false, isBlockDevice: false });
  };
  let practice: Practice | undefined;
  try {
    const disk = alignDown(Math.min(Math.max(size, 2 * PART), DISK_MAX), SECTOR_SIZE);
    const image = createFile();
    const backing = isOverlay ? createFile() : undefined;
    backing?.truncate(disk, 'create');
    const options = { size: disk, clusterSize: CLUSTER };
    const overlay = { ...options, backing: { name: image.path, format: 'raw' } };
    formatByName(format).create?.(image, isOverlay ? overlay : options);
    yield;
    const node = attach(image, format, probed, backing);
    yield;
    const layers = [{ path: image.path, format, readOnly: false, mode: 0, mtimeMs: 0 }];
    const plan = buildTree([{ name: format, layers }], { singleImage: true, mountedMs: 0 });
    const fileSystem = createFileSystem(plan, [node], { growable: false, readOnly: false, uid: 0, gid: 0 });
    yield;
    practice = new Practice(fileSystem, fileSystem.lookup(fileSystem.rootIno, 'disk'), CLUSTER);
    for (let number = 0; number < REQUESTS; number++) {
      yield;
      ask(practice, number, alignDown(disk - PART, CLUSTER));
    }
  } finally {
    try {
      practice?.close();
    } finally {
      for (const fd of descriptors) fs.closeSync(fd);
    }
  }
}

function attach(image: FileStorage, format: string, probed: boolean, backing: FileStorage | undefined): BlockNode {
  const layerOf = (storage: FileStorage, name: string, imageId: number) => {
    const module = formatByName(name);
    const header = module.readHeader(storage);
    if (imageId === 0 && probed) header.probed = true;
    const state = createImageState(1, imageId === 0);
    module.initState(header, storage, new ImageState(state, 0));
    return { storage: storage.describe(), header, state, imageId };
  };
  const layers = [layerOf(image, format, 0), ...(backing === undefined ? [] : [layerOf(backing, 'raw', 1)])];
  // As the real image came to this thread: a header that was read here would be another kind of object.
  return attachImage(structuredClone({ layers, cache: createTableCache(TABLE_CACHE_MIN_BYTES) }), 0);
}

/**
 * Of eight requests five write a new cluster, one a part of a new one, one a part of an old one; one reads.
 * @param far every second one is behind this
 */
function ask(practice: Practice, number: number, far: number): void {
  const cluster = (number % 2) * far + Math.floor(number / 2) * CLUSTER;
  const kind = number % 8;
  if (kind < 5) practice.write(cluster, CLUSTER);
  else if (kind === 5) practice.write(cluster + SECTOR_SIZE, SECTOR_SIZE);
  else if (kind === 6) practice.write(cluster - 2 * CLUSTER, SECTOR_SIZE);
  else practice.read(cluster - 2 * CLUSTER, CLUSTER);
  if (number % REQUESTS_PER_FSYNC === 0) practice.fsync();
}
