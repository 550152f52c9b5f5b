/** Options of `create -f qcow2`: what there is, what is legal, and the header of the new image. */
import type { BlockErrorCode } from '../../errors';
import { isPowerOfTwo } from '../../units';
import {
  BACKING_OPTIONS,
  type CreateOptionSpec,
  ENCRYPTION_OPTION,
  preallocationOption,
  SIZE_OPTION,
} from '../create-options';
import type { CreateOptions } from '../format';
import {
  EXTENSION_BACKING_FORMAT,
  EXTENSION_DATA_FILE,
  featureNamesExtension,
  type HeaderExtension,
  textExtension,
} from './extensions';
import {
  AUTOCLEAR_DATA_FILE_RAW,
  BACKING_FORMAT_MAX,
  BACKING_NAME_MAX,
  COMPATIBLE_LAZY_REFCOUNTS,
  DATA_FILE_NAME_MAX,
  DEFAULT_CLUSTER_BITS,
  DEFAULT_REFCOUNT_ORDER,
  EXTENDED_L2_MIN_CLUSTER,
  FEATURE_NAMES,
  INCOMPATIBLE_COMPRESSION,
  INCOMPATIBLE_DATA_FILE,
  INCOMPATIBLE_EXTENDED_L2,
  KNOWN_HEADER_BYTES,
  MAX_CLUSTER_BITS,
  MIN_CLUSTER_BITS,
  type Qcow2Header,
  V2_HEADER_BYTES,
} from './layout';

const DEFAULT_REFCOUNT_BITS = 2 ** DEFAULT_REFCOUNT_ORDER;
const DEFAULT_CLUSTER_SIZE = 2 ** DEFAULT_CLUSTER_BITS;
/** Bytes. QEMU leaves the feature name table out of smaller headers, so that there is room for a backing name. */
const FEATURE_NAMES_MIN_CLUSTER = 8192;

export const QCOW2_CREATE_OPTIONS: readonly CreateOptionSpec[] = [
  ENCRYPTION_OPTION,
  { name: 'cluster_size', type: 'size', help: 'qcow2 cluster size', shown: String(DEFAULT_CLUSTER_SIZE) },
  { name: 'extended_l2', type: 'bool', help: 'Extended L2 tables', shown: 'off' },
  preallocationOption('off', 'metadata', 'falloc', 'full'),
  {
    name: 'compression_type',
    type: 'str',
    help: 'Compression method used for image cluster compression',
    values: ['zlib', 'zstd'],
    shown: 'zlib',
  },
  SIZE_OPTION,
  {
    name: 'compat',
    type: 'str',
    help: 'Compatibility level (v2 [0.10] or v3 [1.1])',
    values: ['0.10', '1.1', 'v2', 'v3'],
  },
  ...BACKING_OPTIONS,
  { name: 'data_file', type: 'str', help: 'File name of an external data file' },
  { name: 'data_file_raw', type: 'bool', help: 'The external data file must stay valid as a raw image' },
  { name: 'lazy_refcounts', type: 'bool', help: 'Postpone refcount updates', shown: 'off' },
  {
    name: 'refcount_bits',
    type: 'num',
    help: 'Width of a reference count entry in bits',
    shown: String(DEFAULT_REFCOUNT_BITS),
  },
];

interface Problem {
  code: BlockErrorCode;
  text: string;
}

/** What is wrong with the options, in the words of qemu-img where it refuses the same. */
export function createProblem(options: CreateOptions): Problem | undefined {
  const invalid = (text: string): Problem => ({ code: 'INVALID_FORMAT', text });
  const { clusterSize = DEFAULT_CLUSTER_SIZE, refcountBits = DEFAULT_REFCOUNT_BITS, backing, dataFile } = options;
  if (!isPowerOfTwo(clusterSize) || clusterSize < 2 ** MIN_CLUSTER_BITS || clusterSize > 2 ** MAX_CLUSTER_BITS) {
    return invalid('Cluster size must be a power of two between 512 and 2048k');
  }
  if (!isPowerOfTwo(refcountBits) || refcountBits > 64) {
    return invalid('Refcount width must be a power of two and may not exceed 64 bits');
  }
  if (options.extendedL2 && clusterSize < EXTENDED_L2_MIN_CLUSTER) {
    return invalid(
      `Extended L2 entries are only supported with cluster sizes of at least ${EXTENDED_L2_MIN_CLUSTER} bytes`,
    );
  }
  if (options.version === 2) {
    const name = version3Feature(options);
    if (name !== undefined)
      return invalid(`${name} compatibility level 1.1 and above (use compat=1.1 or leave it out)`);
  }
  const preallocated = options.preallocation !== undefined && options.preallocation !== 'off';
  if (backing !== undefined && preallocated && !options.extendedL2) {
    return invalid('Backing file and preallocation can only be used at the same time if extended_l2 is on');
  }
  if (dataFile?.raw && backing !== undefined) {
    return invalid('Backing file and data-file-raw cannot be used at the same time');
  }
  return nameProblem(options);
}

function version3Feature(options: CreateOptions): string | undefined {
  if (options.dataFile !== undefined) return 'External data files are only supported with';
  if (options.extendedL2) return 'Extended L2 entries are only supported with';
  if (options.lazyRefcounts) return 'Lazy refcounts only supported with';
  if ((options.refcountBits ?? DEFAULT_REFCOUNT_BITS) !== DEFAULT_REFCOUNT_BITS) {
    return 'Different refcount widths than 16 bits require';
  }
  if ((options.compressionType ?? 'zlib') !== 'zlib') return 'Non-zlib compression type is only supported with';
  return;
}

function nameProblem({ backing, dataFile }: CreateOptions): Problem | undefined {
  const names: [what: string, name: string | undefined, most: number][] = [
    ['backing file name', backing?.name, BACKING_NAME_MAX],
    ['backing file format', backing?.format, BACKING_FORMAT_MAX],
    ['data file name', dataFile?.name, DATA_FILE_NAME_MAX],
  ];
  for (const [what, name, most] of names) {
    if (name === undefined) continue;
    const bytes = Buffer.byteLength(name, 'utf8');
    if (bytes === 0) return { code: 'INVALID_FORMAT', text: `${what} is empty` };
    if (bytes > most)
      return { code: 'LIMIT_EXCEEDED', text: `${what} has ${bytes} bytes, at most ${most} are allowed` };
  }
  return;
}

/** The header of a new image, without the places of its tables. The options are legal. */
export function newQcow2Header(options: CreateOptions): Qcow2Header {
  const { backing, dataFile, version = 3, compressionType = 'zlib', extendedL2 = false } = options;
  const clusterSize = options.clusterSize ?? DEFAULT_CLUSTER_SIZE;
  let incompatible = 0n;
  if (dataFile !== undefined) incompatible |= INCOMPATIBLE_DATA_FILE;
  if (compressionType !== 'zlib') incompatible |= INCOMPATIBLE_COMPRESSION;
  if (extendedL2) incompatible |= INCOMPATIBLE_EXTENDED_L2;
  return {
    format: 'qcow2',
    virtualSize: options.size,
    clusterSize,
    ...(backing === undefined ? {} : { backing }),
    ...(dataFile === undefined ? {} : { dataFile: { name: dataFile.name } }),
    dirty: false,
    version,
    l1Entries: 0,
    l1TableOffset: 0,
    refcountTableOffset: 0,
    refcountTableClusters: 0,
    snapshotCount: 0,
    snapshotsOffset: 0,
    incompatible,
    compatible: options.lazyRefcounts ? COMPATIBLE_LAZY_REFCOUNTS : 0n,
    autoclear: dataFile?.raw ? AUTOCLEAR_DATA_FILE_RAW : 0n,
    refcountOrder: Math.log2(options.refcountBits ?? DEFAULT_REFCOUNT_BITS),
    headerLength: version === 2 ? V2_HEADER_BYTES : KNOWN_HEADER_BYTES,
    compressionType,
    extendedL2,
    rawDataFile: dataFile?.raw ?? false,
    corrupt: false,
    backingNameOffset: 0,
    backingNameSize: 0,
    extensions: extensionsFor(options, version, clusterSize),
  };
}

function extensionsFor({ backing, dataFile }: CreateOptions, version: 2 | 3, clusterSize: number): HeaderExtension[] {
  const extensions: HeaderExtension[] = [];
  if (backing?.format !== undefined) extensions.push(textExtension(EXTENSION_BACKING_FORMAT, backing.format));
  if (dataFile !== undefined) extensions.push(textExtension(EXTENSION_DATA_FILE, dataFile.name));
  if (version === 3 && clusterSize >= FEATURE_NAMES_MIN_CLUSTER) extensions.push(featureNamesExtension(FEATURE_NAMES));
  return extensions;
}
