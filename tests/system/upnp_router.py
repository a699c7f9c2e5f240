"""A home router that speaks UPnP, as far as a client needs: ``python upnp_router.py ADDRESS``.

It answers the search by multicast, describes itself, and takes port mappings, each of
which it prints as a line. For a network namespace of its own.
"""

import re
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

OUTSIDE = "20.9.9.9"
PORT = 5431
SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
DEVICE = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"


def device(kind, inner):
    return (
        f"<device><deviceType>urn:schemas-upnp-org:device:{kind}:1</deviceType>"
        f"<friendlyName>{kind}</friendlyName><UDN>uuid:{kind}</UDN>{inner}</device>"
    )


DESCRIPTION = (
    '<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0">'
    "<specVersion><major>1</major><minor>0</minor></specVersion>"
    + device(
        "InternetGatewayDevice",
        "<deviceList>"
        + device(
            "WANDevice",
            "<deviceList>"
            + device(
                "WANConnectionDevice",
                f"<serviceList><service><serviceType>{SERVICE}</serviceType>"
                "<serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>"
                "<controlURL>/control</controlURL><eventSubURL>/events</eventSubURL>"
                "<SCPDURL>/scpd.xml</SCPDURL></service></serviceList>",
            )
            + "</deviceList>",
        )
        + "</deviceList>",
    )
    + "</root>"
)
ANSWERS = {
    "GetExternalIPAddress": f"<NewExternalIPAddress>{OUTSIDE}</NewExternalIPAddress>",
    "GetStatusInfo": "<NewConnectionStatus>Connected</NewConnectionStatus>"
    "<NewLastConnectionError>ERROR_NONE</NewLastConnectionError><NewUptime>9</NewUptime>",
}


class Control(BaseHTTPRequestHandler):
    def log_message(self, *args): ...

    def reply(self, text):
        data = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", 'text/xml; charset="utf-8"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.reply(DESCRIPTION)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        action = self.headers["SOAPAction"].strip('"').rpartition("#")[2]
        fields = dict(re.findall(r"<(New\w+)[^>]*>([^<]*)</", body))
        if "PortMapping" in action:
            said = [
                fields.get(f"New{name}", "")
                for name in ("ExternalPort", "Protocol", "InternalClient", "LeaseDuration")
            ]
            print(action, *said, flush=True)
        self.reply(
            '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/">'
            f'<s:Body><u:{action}Response xmlns:u="{SERVICE}">{ANSWERS.get(action, "")}'
            f"</u:{action}Response></s:Body></s:Envelope>"
        )


def discoverable(address):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", 1900))
    group = struct.pack("4s4s", socket.inet_aton("239.255.255.250"), socket.inet_aton(address))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    while True:
        data, sender = sock.recvfrom(2048)
        if data.startswith(b"M-SEARCH"):
            answer = (
                "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nEXT:\r\n"
                f"LOCATION: http://{address}:{PORT}/root.xml\r\nSERVER: test\r\n"
                f"ST: {DEVICE}\r\nUSN: uuid:x::{DEVICE}\r\n\r\n"
            )
            sock.sendto(answer.encode(), sender)


if __name__ == "__main__":
    threading.Thread(target=discoverable, args=sys.argv[1:2], daemon=True).start()
    server = HTTPServer((sys.argv[1], PORT), Control)
    print("ready", flush=True)
    server.serve_forever()
